#!/usr/bin/env python3
"""Puts known bugs into the code, one at a time, and checks that a test catches each.

    tests/museum/run_museum.py --build build/release [--jobs N] [-R REGEX]

An exhibit is a patch in this folder whose first lines say "Why: ..." and "Caught by: PROGRAM ARGUMENTS" (a test program of the
build). The tree is not touched: patched files go to a scratch folder that comes first on the include path, only objects that see
them are compiled again, and they are linked before the libraries of the build. Prints a table; exits 1 if a bug survives, if a
patch does not apply any more, or if a program fails without any bug.
"""

import argparse
import concurrent.futures
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[2]
MUSEUM = Path(__file__).resolve().parent
TEST_SECONDS = 120
HEADER = re.compile(r"^(Why|Caught by): (.+)$", re.MULTILINE)
TARGET = re.compile(r"^\+\+\+ b/(\S+)", re.MULTILINE)


class Failure(Exception):
    """Why an exhibit could not be shown."""


class Build:
    """What ninja and CMake know of the finished build."""

    def __init__(self, folder):
        self.folder = folder.resolve()
        commands = json.loads((self.folder / "compile_commands.json").read_text())
        self.compile = {self._relative(entry): shlex.split(entry["command"]) for entry in commands}
        self.links, self.depends = {}, {}

    def _relative(self, entry):
        path = (Path(entry["directory"]) / entry["file"]).resolve()
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)

    def ninja(self, *arguments):
        return subprocess.run(["ninja", "-C", str(self.folder), *arguments], capture_output=True, text=True, check=True).stdout

    def prepare(self, programs):
        """Reads, before anything runs in parallel, how programs are linked and which sources see which headers."""
        objects = set()
        for program in programs:
            commands = self.ninja("-t", "commands", f"tests/{program}").splitlines()
            link = [word for word in shlex.split(commands[-1]) if word not in (":", "&&")]
            members = {word for line in commands for word in shlex.split(line) if word.endswith(".o")}
            self.links[program] = (link, members)
            objects |= members
        for block in self.ninja("-t", "deps", *sorted(objects)).split("\n\n"):
            lines = block.strip().splitlines()
            if lines:
                name = lines[0].split(":")[0]
                self.depends[name] = {str((self.folder / line.strip()).resolve()) for line in lines[1:]}

    def objects_that_see(self, program, files):
        """Pairs of source and object of `program` that depend on one of `files`."""
        members, wanted = self.links[program][1], {str(ROOT / name) for name in files}
        for source, command in self.compile.items():
            target = command[command.index("-o") + 1]
            if target in members and (self.depends.get(target, set()) | {str(ROOT / source)}) & wanted:
                yield source, target


def read_exhibit(path):
    text = path.read_text()
    header = dict(HEADER.findall(text.split("\n--- ")[0]))
    if set(header) != {"Why", "Caught by"}:
        raise Failure("says not both Why and Caught by")
    return header["Why"], shlex.split(header["Caught by"]), TARGET.findall(text)


def patch_into(scratch, path, files):
    for name in files:
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, scratch / name)
    done = subprocess.run(["patch", "-p1", "--no-backup-if-mismatch", "-F", "2", "-i", str(path)], cwd=scratch, capture_output=True,
                          text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"the patch does not apply: {done.stdout.strip().splitlines()[-1]}")


def compile_object(build, scratch, source, target):
    command = list(build.compile[source])
    out = scratch / target.replace("/", "_")
    command[command.index("-o") + 1] = str(out)
    at = command.index("-c") + 1
    patched = scratch / source
    command[at] = str(patched if patched.exists() else ROOT / source)
    # Before the tree's own, or a patched header is not the one that is read.
    command.insert(next(i for i, word in enumerate(command) if word.startswith("-I")), f"-I{scratch}")
    at += 1
    # A bug may leave a parameter unused; and it is compiled once and run for seconds.
    command[at - 1:at - 1] = ["-Wno-error", "-O0", "-g0", "-U_FORTIFY_SOURCE"]
    done = subprocess.run(command, cwd=build.folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"does not compile: {done.stderr[-600:]}")
    return out


def link_program(build, scratch, program, replaced):
    out = scratch / program
    link = build.links[program][0]
    words, has_objects = [], False
    for i, word in enumerate(link):
        if i > 0 and link[i - 1] == "-o":
            word = str(out)
        elif word.endswith(".o"):
            if not has_objects:
                words += [str(path) for path in replaced.values()]
                has_objects = True
            if word in replaced:
                continue
        words.append(word)
    done = subprocess.run(words, cwd=build.folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"does not link: {done.stderr[-600:]}")
    return out


def run_test(binary, arguments, folder):
    """(failed, what it said first)"""
    try:
        done = subprocess.run([str(binary), *arguments], cwd=folder, capture_output=True, text=True, errors="replace",
                              timeout=TEST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return True, f"no end within {TEST_SECONDS} s"
    if done.returncode < 0:
        return True, f"died of signal {-done.returncode}"
    said = re.search(r"^seed \d+: .*|\[  FAILED  \] \S+", done.stdout, re.MULTILINE)
    return done.returncode != 0, said.group(0)[:110] if said else f"exit code {done.returncode}"


def show(build, path):
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kvstore-museum-") as folder:
        scratch = Path(folder)
        try:
            why, (program, *arguments), files = read_exhibit(path)
            patch_into(scratch, path, files)
            replaced = {target: compile_object(build, scratch, source, target)
                        for source, target in build.objects_that_see(program, files)}
            if not replaced:
                raise Failure(f"{program} contains nothing of it")
            is_caught, said = run_test(link_program(build, scratch, program, replaced), arguments, scratch)
        except Failure as failure:
            return path.stem, "BROKEN", "", str(failure), time.monotonic() - start
    return path.stem, "caught" if is_caught else "SURVIVED", program, said if is_caught else why, time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "release")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("-R", dest="regex", default="")
    options = parser.parse_args()
    build = Build(options.build)
    exhibits = [path for path in sorted(MUSEUM.glob("*.patch")) if re.search(options.regex, path.stem)]
    tests = {tuple(read_exhibit(path)[1]) for path in exhibits}
    build.prepare({test[0] for test in tests})
    healthy = True
    for program, *arguments in sorted(tests):
        failed, said = run_test(build.folder / "tests" / program, arguments, build.folder)
        if failed:
            healthy = False
            print(f"{program} {' '.join(arguments)} fails without a bug: {said}")
    outcomes = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for name, state, program, text, seconds in pool.map(lambda path: show(build, path), exhibits):
            outcomes.append(state)
            print(f"{state:9} {name:42} {program:22} {seconds:4.0f} s  {text}", flush=True)
    caught = outcomes.count("caught")
    print(f"{caught} of {len(outcomes)} bugs caught")
    return 0 if healthy and outcomes and caught == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
