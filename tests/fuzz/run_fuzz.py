#!/usr/bin/env python3
"""Replays the kept corpus of every fuzz target, then fuzzes each for some time; a line a target.

    tests/fuzz/run_fuzz.py --build build/fuzz                   60 s a target
    tests/fuzz/run_fuzz.py --build build/fuzz --seconds 0       only the corpus
    tests/fuzz/run_fuzz.py --build build/fuzz --keep -R slots   takes what was new into the corpus, smallest set

A line begins with "ok" or "FAILED"; a finding is followed by its reproducer and the command that replays it.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS, DICTIONARIES = HERE / "corpus", HERE / "dictionaries"
REPLAY_SECONDS = 120
INPUT_SECONDS = 30  # one input, on a machine with other work; more is a finding
MEMORY_MB = 2048
# libFuzzer's last status line, and the number of inputs that it ran.
STATUS = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)/(\S+)")
EXECUTIONS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
RAN = re.compile(r"^Executed .* in \d+ ms$", re.MULTILINE)
FINDING = re.compile(r"^(.*(?:not so: |runtime error: |ERROR: ).*)$", re.MULTILINE)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True, help="folder of the preset fuzz, with fuzz_targets built")
    parser.add_argument("--seconds", type=int, default=60, help="of fuzzing a target, after its corpus")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--keep", action="store_true", help="merge what was found into the corpus of the tree")
    parser.add_argument("-R", dest="regex", default="", metavar="REGEX", help="only targets whose name matches")
    return parser.parse_args()


class Target:
    def __init__(self, program, build):
        self.name = program.name.removesuffix("_fuzz")
        self.program = program.resolve()
        self.corpus = CORPUS / self.name
        work = build.resolve() / "fuzz-work" / self.name
        self.found, self.crashes = work / "found", work / "crashes"
        for folder in (self.found, self.crashes):
            folder.mkdir(parents=True, exist_ok=True)

    def kept(self):
        return sorted(path for path in self.corpus.iterdir() if path.is_file()) if self.corpus.is_dir() else []

    def run(self, arguments, seconds):
        """Runs the program for at most `seconds`; (exit code, output)."""
        command = [str(self.program), f"-artifact_prefix={self.crashes}/", f"-timeout={INPUT_SECONDS}",
                   f"-rss_limit_mb={MEMORY_MB}", *map(str, arguments)]
        # In a folder of its own: nothing that it might write belongs into the tree.
        with subprocess.Popen(command, cwd=self.crashes, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors="replace") as process:
            try:
                output, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                output += f"\nERROR: did not end within {seconds} s"
            return process.returncode, output

    def failure(self, what, output):
        """The lines for a finding: what it is, the input, how to see it again."""
        finding = FINDING.search(output)
        lines = [f"FAILED {self.name}: {what}: {finding.group(1).strip() if finding else 'see its output'}"]
        written = re.search(r"Test unit written to (\S+)", output)
        running = re.findall(r"^Running: (\S+)", output, re.MULTILINE)
        reproducer = written.group(1) if written else running[-1] if running else None
        if reproducer:
            lines += [f"  reproducer: {reproducer}", f"  replay: {self.program} {reproducer}"]
        else:
            lines += output.splitlines()[-20:]
        return False, lines

    def replay(self):
        kept = self.kept()
        if not kept:
            return False, [f"FAILED {self.name}: there is no corpus in {self.corpus}"]
        start = time.monotonic()
        code, output = self.run(kept, REPLAY_SECONDS)
        if code != 0:
            return self.failure("an input of the corpus", output)
        ran = len(RAN.findall(output))
        if ran != len(kept):
            return False, [f"FAILED {self.name}: {ran} of {len(kept)} inputs were run"]
        return True, [f"ok {self.name}: {ran} inputs of the corpus in {time.monotonic() - start:.1f} s"]

    def fuzz(self, seconds):
        dictionary = DICTIONARIES / f"{self.name}.dict"
        # Its bookkeeping of rare features takes a quarter to a half of the time of targets whose every run touches thousands.
        arguments = [f"-max_total_time={seconds}", "-print_final_stats=1", "-verbosity=1", "-entropic=0"]
        if dictionary.exists():
            arguments.append(f"-dict={dictionary}")
        code, output = self.run([*arguments, self.found, self.corpus], seconds + REPLAY_SECONDS)
        if code != 0:
            return self.failure(f"found within {seconds} s", output)
        status, executions = STATUS.findall(output), EXECUTIONS.search(output)
        if not status or not executions:
            return False, [f"FAILED {self.name}: no statistics", *output.splitlines()[-20:]]
        coverage, features, inputs, size = status[-1]
        return True, [f"ok {self.name}: {int(executions.group(1)):,} executions, coverage {coverage} edges "
                      f"({features} features), corpus {inputs} inputs, {size}"]

    def keep(self):
        """The smallest set of kept and found inputs that covers the same edges; it replaces the corpus."""
        merged = self.found.parent / "merged"
        shutil.rmtree(merged, ignore_errors=True)
        merged.mkdir()
        code, output = self.run(["-merge=1", "-use_counters=0", merged, self.corpus, self.found], 10 * REPLAY_SECONDS)
        if code != 0 or not any(merged.iterdir()):
            return self.failure("merging", output)
        shutil.rmtree(self.corpus, ignore_errors=True)
        shutil.copytree(merged, self.corpus)
        return True, [f"ok {self.name}: the corpus has {len(self.kept())} inputs now"]


def run_all(targets, jobs, step):
    """Prints each target's lines as it ends; true if all are well."""
    is_well = True
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for done in concurrent.futures.as_completed([pool.submit(step, target) for target in targets]):
            is_ok, lines = done.result()
            is_well &= is_ok
            print("\n".join(lines), flush=True)
    return is_well


def main():
    options = parse_options()
    programs = sorted((options.build / "fuzz").glob("*_fuzz"))
    targets = [Target(program, options.build) for program in programs
               if re.search(options.regex, program.name) and os.access(program, os.X_OK)]
    if not targets:
        print(f"FAILED no target matches in {options.build}/fuzz; build fuzz_targets")
        return 1
    is_well = run_all(targets, options.jobs, Target.replay)
    if options.seconds > 0:
        is_well &= run_all(targets, options.jobs, lambda target: target.fuzz(options.seconds))
    if options.keep and is_well:
        is_well &= run_all(targets, 1, Target.keep)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
