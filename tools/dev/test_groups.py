"""Groups of tests and how each kind is run and counted: check scripts, CTest labels, pytest."""

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import xml.etree.ElementTree as xml
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIPPED_CODE = 77


@dataclass
class Outcome:
    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    notes: list = field(default_factory=list)  # names of what failed or was skipped, and why
    seconds: float = 0.0


def skipped_group(name, reason):
    return Outcome(name, skipped=1, notes=[f"skipped: {reason}"])


def run_bounded(command, seconds, env=None, cwd=ROOT):
    """Runs `command` in a process group of its own. Returns its exit code; None when it ran out of time and was killed."""
    process = subprocess.Popen(command, cwd=cwd, env={**os.environ, **(env or {})}, start_new_session=True)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        try:  # what it left behind as well
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def run_check(script, seconds=120):
    outcome = Outcome(script)
    code = run_bounded([str(ROOT / "tools" / "dev" / script)], seconds)
    if code == SKIPPED_CODE:
        return skipped_group(script, "its program is not installed")
    outcome.passed, outcome.failed = (1, 0) if code == 0 else (0, 1)
    if code != 0:
        outcome.notes.append(f"failed: tools/dev/{script}" + (" ran out of time" if code is None else ""))
    return outcome


def run_ctest(folder, label, seconds, jobs, regex=None, env=None):
    """Runs the CTest entries of a label. Counts the cases of GoogleTest's own reports, and one for each other entry."""
    results = folder / "test-results" / label
    results.mkdir(parents=True, exist_ok=True)
    for old in results.iterdir():
        old.unlink()
    junit = results / "ctest.junit"
    command = ["ctest", "--test-dir", str(folder), "-L", f"^{label}$", "-j", str(jobs), "--output-junit", str(junit),
               "--output-on-failure", "--no-tests=ignore", "--progress"]
    command += ["-R", regex] if regex else []
    code = run_bounded(command, seconds, {"GTEST_OUTPUT": f"json:{results}/", "GTEST_BRIEF": "1", **(env or {})})
    outcome = count_ctest(label, junit, results)
    if code is None:
        outcome.failed += 1
        outcome.notes.append(f"failed: group {label} did not end within {seconds:.0f} s")
    elif code != 0 and outcome.failed == 0:
        outcome.failed += 1
        outcome.notes.append(f"failed: ctest ended with {code}")
    return outcome


def run_bundled_gpu_tests(folder, seconds):
    """Packs the CUDA tests as users get them, and runs them from there."""
    outcome = Outcome("gpu")
    with tempfile.TemporaryDirectory(prefix="kvstore-bundle-") as place:
        bundle = Path(place) / "bundle.tar.xz"
        if run_bounded([str(ROOT / "tools" / "bundle"), "--build", str(folder), "--tests", "--out", str(bundle)], 300) != 0:
            outcome.failed, outcome.notes = 1, ["failed: tools/bundle --tests"]
            return outcome
        subprocess.run(["tar", "-C", place, "-xJf", str(bundle)], check=True)
        log = Path(place) / "log"
        code = run_bounded(["sh", "-c", f"./run gpu-tests >{log} 2>&1; code=$?; cat {log}; exit $code"], seconds,
                           cwd=Path(place) / "kvstore")
        found = re.findall(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", log.read_text(errors="replace"), re.M)
    if found:
        outcome.passed, outcome.failed, outcome.skipped = (int(n) for n in found[-1])
    if code != 0 and outcome.failed == 0:
        outcome.failed = 1
    if outcome.failed:
        outcome.notes.append("failed: gpu-tests of the bundle" + (" ran out of time" if code is None else ""))
    if outcome.skipped:
        outcome.notes.append(f"skipped: {outcome.skipped} CUDA tests, no CUDA device")
    return outcome


def count_ctest(label, junit, results):
    outcome = Outcome(label)
    for case in xml.parse(junit).getroot().iter("testcase") if junit.exists() else []:
        name, status = case.get("name"), case.get("status")
        reports = [path for path in results.glob("*.json") if re.fullmatch(re.escape(name) + r"(_\d+)?", path.stem)]
        failed_before = outcome.failed
        for report in reports:
            count_gtest(outcome, name, report)
        if status == "run" and not reports:
            outcome.passed += 1
        elif status in ("notrun", "disabled"):
            outcome.skipped += 1
            outcome.notes.append(f"skipped: {name}: {skip_reason(case)}")
        elif status == "fail" and outcome.failed == failed_before:  # crashed, hung, or no GoogleTest program
            outcome.failed += 1
            outcome.notes.append(f"failed: {name}")
    return outcome


def skip_reason(case):
    element = case.find("skipped")
    return element.get("message", "no reason given") if element is not None else "no reason given"


def count_gtest(outcome, program, report):
    try:
        suites = json.loads(report.read_text())["testsuites"]
    except (ValueError, KeyError):
        return  # cut off by a crash: the CTest entry counts
    for suite in suites:
        for case in suite["testsuite"]:
            name = f"{program}: {suite['name']}.{case['name']}"
            if case.get("failures"):
                outcome.failed += 1
                outcome.notes.append(f"failed: {name}")
            elif case.get("result") == "SKIPPED":
                outcome.skipped += 1
                outcome.notes.append(f"skipped: {name}")
            elif case.get("status") == "RUN":
                outcome.passed += 1


def run_listing(name, command, seconds, good, bad):
    """Runs a program that prints a line for each of its cases, which begins with a word of `good` or of `bad`."""
    outcome = Outcome(name)
    print_lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          start_new_session=True) as process:
        timer = threading.Timer(seconds, lambda: os.killpg(process.pid, signal.SIGKILL))
        timer.start()
        for line in process.stdout:
            print(line, end="", flush=True)
            print_lines.append(line.strip())
        code = process.wait()
        timer.cancel()
    for line in print_lines:
        word = line.split(" ")[0]
        if word in good:
            outcome.passed += 1
        elif word in bad:
            outcome.failed += 1
            outcome.notes.append(f"failed: {name}: {line}")
    if code != 0 and outcome.failed == 0:
        outcome.failed += 1
        outcome.notes.append(f"failed: {name} ended with {code}")
    return outcome


def run_pytest(python, name, arguments, seconds, env=None):
    junit = ROOT / "build" / f"pytest-{name}.xml"
    junit.parent.mkdir(exist_ok=True)
    junit.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={junit}", *arguments]
    code = run_bounded(command, seconds, {"PYTHONDONTWRITEBYTECODE": "1", **(env or {})})
    outcome = count_pytest(name, junit)
    if code is None:
        outcome.failed += 1
        outcome.notes.append(f"failed: group {name} did not end within {seconds:.0f} s")
    elif code not in (0, 1, 5):  # 1: tests failed and are counted; 5: none was selected
        outcome.failed += 1
        outcome.notes.append(f"failed: pytest ended with {code}")
    return outcome


def count_pytest(name, junit):
    outcome = Outcome(name)
    for case in xml.parse(junit).getroot().iter("testcase") if junit.exists() else []:
        label = f"{case.get('classname')}.{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
            outcome.notes.append(f"failed: {label}")
        elif skipped is not None:
            outcome.skipped += 1
            outcome.notes.append(f"skipped: {label}: {skipped.get('message')}")
        else:
            outcome.passed += 1
    return outcome


def timed(run):
    start = time.monotonic()
    outcome = run()
    outcome.seconds = time.monotonic() - start
    return outcome
