"""Lets a tool be started by any Python: it goes on in build/venv if this Python lacks numpy."""

import importlib.util
import os
import sys
from pathlib import Path


def require_numpy():
    if importlib.util.find_spec("numpy") is not None:
        return
    root = Path(__file__).resolve().parents[2]
    python = root / "build" / "venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix).resolve() != python.parents[1].resolve():
        os.execv(python, [str(python), *sys.argv])
    sys.exit("numpy is missing: run tools/quickstart --no-demo, or `pip install -r tools/requirements.txt`")
