"""The files of this repository, for the check scripts."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CPP = (".h", ".cc", ".cu", ".cuh")
SKIPPED_FOLDERS = {"build", ".git", "__pycache__"}


def all_files(root=ROOT):
    """Paths relative to `root`: tracked ones and new ones that git does not ignore; without git, all but build folders."""
    listing = subprocess.run(["git", "-C", str(root), "ls-files", "-co", "--exclude-standard"],
                             capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        names = sorted(set(listing.stdout.splitlines()))
    else:
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*")
                       if not SKIPPED_FOLDERS & set(path.relative_to(root).parts))
    return [name for name in names if (root / name).is_file()]


def cpp_files(root=ROOT):
    return [name for name in all_files(root) if name.endswith(CPP)]
