"""Configures and builds a preset, and makes the Python environment under build/; shared by tools/test and tools/quickstart."""

import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / "build" / "venv"
GIB = 1 << 30
PROGRESS_EVERY_S = 10
NINJA_LINE = re.compile(r"^\[(\d+)/(\d+)\]")


class BuildError(Exception):
    pass


def say(text):
    print(text, flush=True)


def jobs():
    """One compiler a core, and 1 GiB for each: gRPC files take half of that."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // GIB))


def build(preset, targets=(), on_line=say):
    """Configures `preset` into build/<preset> and builds `targets` (all when empty), showing progress."""
    configure = subprocess.run(["cmake", "--preset", preset], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, check=False)
    if configure.returncode != 0:
        raise BuildError(f"configuring failed:\n{configure.stdout}")
    folder = ROOT / "build" / preset
    start = time.monotonic()
    process = subprocess.Popen(["ninja", "-C", str(folder), f"-j{jobs()}", *targets], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors="replace")
    other_lines = _show_progress(process.stdout, on_line)
    if process.wait() != 0:
        raise BuildError("building failed:\n" + "".join(other_lines))
    on_line(f"built {preset} in {time.monotonic() - start:.0f} s")
    return folder


def _show_progress(lines, on_line):
    """Shows how far ninja is, now and then; returns what is no progress (warnings, errors)."""
    other, shown = [], time.monotonic()
    is_terminal = sys.stdout.isatty()
    for line in lines:
        match = NINJA_LINE.match(line)
        if not match:
            other.append(line)
        elif is_terminal:
            print(f"\r\033[K{line.rstrip()[:100]}", end="", flush=True)
        elif time.monotonic() - shown > PROGRESS_EVERY_S:
            shown = time.monotonic()
            on_line(f"  building {match.group(1)} of {match.group(2)}")
    if is_terminal:
        print("\r\033[K", end="", flush=True)
    return other


def python_environment(*requirement_files):
    """build/venv with the packages of the files; installs only when one of them changed. Returns its Python."""
    files = [ROOT / name for name in requirement_files if (ROOT / name).exists()]
    wanted = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
    python, stamp = VENV / "bin" / "python", VENV / f"installed-{wanted[:16]}"
    if stamp.exists() and python.exists():
        return python
    say("preparing the Python environment in build/venv")
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(VENV)], "making build/venv")
    arguments = [argument for path in files for argument in ("-r", str(path))]
    if arguments:
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments], "pip install")
    stamp.touch()
    return python


def fetch_model(python):
    """build/models/smollm2; the tool leaves a complete folder alone."""
    folder = ROOT / "build" / "models" / "smollm2"
    _run([str(python), str(ROOT / "tools" / "fetch_model"), "smollm2", "--out", str(folder)], "tools/fetch_model")
    return folder


def _run(command, what):
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise BuildError(f"{what} failed (its reason is above)")
