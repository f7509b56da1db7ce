"""Runs `kvengine generate` once, and says while it runs that it does."""

import json
import subprocess
import sys
import tempfile
import time

ENGINE_SECONDS = 600
PROGRESS_EVERY_S = 10
SAID_MAX = 500


class EngineError(Exception):
    pass


def generate(command, label):
    """Returns kvengine's JSON, and as "said" what it wrote to standard error. Raises EngineError when it fails, hangs, or prints none."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        start = time.monotonic()
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=errors)
        try:
            code = _wait(process, label, start)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        out.seek(0)
        errors.seek(0)
        text, problems = out.read(), errors.read()
    if code != 0:
        raise EngineError(f"kvengine ended with {code}: {problems.strip()[-2000:]}{text.strip()[-500:]}")
    try:
        return {**json.loads(text), "said": problems.strip()[-SAID_MAX:]}
    except ValueError:
        raise EngineError(f"kvengine printed no JSON: {text[:500]!r}") from None


def _wait(process, label, start):
    is_terminal, shown = sys.stderr.isatty(), start
    while True:
        try:
            code = process.wait(0.2)
            if is_terminal:
                print("\r\033[K", end="", file=sys.stderr, flush=True)
            return code
        except subprocess.TimeoutExpired:
            pass
        now = time.monotonic()
        if now - start > ENGINE_SECONDS:
            raise EngineError(f"kvengine did not end within {ENGINE_SECONDS} s")
        if is_terminal:
            print(f"\r  {label}: {now - start:.0f} s", end="", file=sys.stderr, flush=True)
        elif now - shown > PROGRESS_EVERY_S:
            shown = now
            print(f"  {label}: {now - start:.0f} s", file=sys.stderr, flush=True)
