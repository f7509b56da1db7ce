"""Fixtures: programs, a daemon, kvctl, token and page files."""

import json
import os
import random
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "tools" / "dev"))
from mainjob.daemon import Daemon  # noqa: E402

BLOCK_TOKENS, SLICES, SLICE_BYTES = 16, 4, 4096
PAGE_BYTES = SLICES * SLICE_BYTES


@pytest.fixture(scope="session")
def bin_dir():
    path = Path(os.environ.get("KVSTORE_BIN_DIR", ROOT / "build" / "release" / "bin"))
    missing = [name for name in ("kvstored", "kvctl") if not (path / name).exists()]
    if missing:
        pytest.skip(f"{', '.join(missing)} not built in {path}")
    return path


@pytest.fixture(scope="session")
def disk_folder(tmp_path_factory):
    """A folder on a file system that takes O_DIRECT: under build/, since /tmp may be in memory."""
    base = ROOT / "build" / "test-data"
    base.mkdir(parents=True, exist_ok=True)
    yield base


class Kvctl:
    """Calls kvctl on one daemon; remembers nothing."""

    def __init__(self, daemon):
        self.daemon = daemon

    def __call__(self, *arguments, code=0, **options):
        done = self.daemon.kvctl(*[str(word) for word in arguments], check=False, **options)
        assert done.returncode == code, f"kvctl {arguments} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def json(self, *arguments, code=0, **options):
        done = self("--json", *arguments, code=code, **options)
        assert done.stderr == "", "with --json nothing goes to stderr"
        return json.loads(done.stdout)

    def error(self, *arguments, code, **options):
        """The error object of a command that ends with `code`."""
        out = self.json(*arguments, code=code, **options)
        assert list(out) == ["error"] and sorted(out["error"]) == ["code", "message"]
        return out["error"]


class Prompt:
    """A token file and pages of random bytes for its whole blocks."""

    def __init__(self, folder, blocks, seed, page_bytes=PAGE_BYTES, extra_tokens=0):
        generator = random.Random(seed)
        self.blocks = blocks
        self.page_bytes = page_bytes
        self.ids = [generator.randrange(2**32) for _ in range(blocks * BLOCK_TOKENS + extra_tokens)]
        self.pages = [generator.randbytes(page_bytes) for _ in range(blocks)]
        self.data = b"".join(self.pages)
        self.tokens_path = folder / f"tokens-{seed}.txt"
        self.data_path = folder / f"data-{seed}.bin"
        self.tokens_path.write_text(" ".join(map(str, self.ids)) + "\n")
        self.data_path.write_bytes(self.data)

    def put_arguments(self):
        return ("--tokens", self.tokens_path, "--data", self.data_path)


@pytest.fixture
def make_prompt(tmp_path):
    return lambda blocks, seed, **options: Prompt(tmp_path, blocks, seed, **options)


@pytest.fixture(scope="module")
def daemon(bin_dir, disk_folder):
    import shutil
    import tempfile
    folder = Path(tempfile.mkdtemp(dir=disk_folder))
    config = (f'[tier.dram]\nbytes = "64MiB"\n[tier.nvme]\ndirs = ["{folder / "nvme"}"]\nbytes = "256MiB"\n')
    (folder / "nvme").mkdir()
    try:
        with Daemon(bin_dir, config, folder=folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def kvctl(daemon):
    return Kvctl(daemon)


SPEC_FLAGS = ("--model", "test", "--revision", "r1", "--dtype", "bf16", "--block-tokens", BLOCK_TOKENS, "--slices", SLICES,
              "--slice-bytes", SLICE_BYTES)


@pytest.fixture
def namespace(kvctl, request):
    """A namespace of this test alone: its own model name makes its own fingerprint."""
    name = re.sub(r"\W", "-", request.node.name)[:100]
    flags = list(SPEC_FLAGS)
    flags[1] = request.node.nodeid[-200:]
    kvctl("open", name, *flags)
    return name
