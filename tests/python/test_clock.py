"""A daemon whose wall clock is wrong or jumps (libfaketime; CLOCK_MONOTONIC is left alone): leases and deadlines do not notice, certificates do."""

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Daemon, Kvctl
from test_tls import Site

LIBRARY = next((path for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
LEASE_SECONDS = 3
TOKENS = [7919 + i for i in range(8 * 16)]  # crash_client's
SPEC = ("--model", "test-model", "--dtype", "bf16", "--block-tokens", 16, "--slices", 4, "--slice-bytes", 16384)

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime")


class Shift:
    """The daemon's wall clock against the real one."""

    def __init__(self, folder):
        self.file = folder / "faketime"

    def set(self, shift):
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{shift}\n")
        fresh.rename(self.file)

    @contextmanager
    def environment(self):
        added = {"LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(self.file), "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1",
                 "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1"}
        os.environ.update(added)
        try:
            yield
        finally:
            for name in added:
                del os.environ[name]

    def start(self, daemon):
        """What asks it while it starts has the same clock; later callers have the real one."""
        with self.environment():
            daemon.start()


@pytest.fixture
def folder():
    made = Path(tempfile.mkdtemp(prefix="kvstore-clock-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@contextmanager
def lease_holder(bin_dir, daemon):
    """A process that holds a lease, stopped: it does not renew."""
    program = bin_dir.parent / "tests" / "crash_client"
    if not program.exists():
        pytest.skip("crash_client is not built")
    process = subprocess.Popen([program, daemon.target, "leased"], stdout=subprocess.PIPE)
    try:
        assert process.stdout.read(5) == b"ready"
        process.send_signal(signal.SIGSTOP)
        yield
    finally:
        process.kill()
        process.wait()


def put(daemon, folder):
    kvctl = Kvctl(daemon)
    kvctl("open", "small", *SPEC)
    (folder / "tokens").write_text(" ".join(map(str, TOKENS)))
    (folder / "pages").write_bytes(random.Random(1).randbytes(8 * 4 * 16384))
    kvctl("put", "small", "--tokens", folder / "tokens", "--data", folder / "pages")
    return kvctl


def reads_back(kvctl, folder):
    kvctl("get", "small", "--tokens", folder / "tokens", "--out", folder / "out")
    return (folder / "out").read_bytes() == (folder / "pages").read_bytes()


@pytest.mark.parametrize("jumps", [("+30d",), ("-2h",), ("+0", "+30d", "-2h", "+0")])
def test_leases_and_calls_do_not_notice(bin_dir, folder, jumps):
    shift = Shift(folder)
    shift.set(jumps[0])
    daemon = Daemon(bin_dir, f'[tier.dram]\nbytes = "64MiB"\n[limits]\nlease_time = "{LEASE_SECONDS}s"\n', folder=folder)
    try:
        shift.start(daemon)
        logged = daemon.log.read_text().split("T")[0]
        real = time.strftime("%Y-%m-%d", time.gmtime())
        assert (logged != real) or jumps[0] != "+30d", "the clock was not shifted"
        kvctl = put(daemon, folder)
        status = lambda: daemon.ask("status")  # noqa: E731
        for jump in jumps[1:]:
            with lease_holder(bin_dir, daemon):
                started = time.monotonic()
                shift.set(jump)
                assert reads_back(kvctl, folder)
                held = status()
                if time.monotonic() - started < LEASE_SECONDS / 2:
                    assert held["leases"] >= 1, f"{jump} ended a lease"
                daemon.wait_until("the lease has expired", lambda: status()["leases"] == 0, 4 * LEASE_SECONDS)
                assert time.monotonic() - started > LEASE_SECONDS / 2
        assert reads_back(kvctl, folder)
        assert 0 <= status()["uptime_s"] < 120
        assert status()["counters"]["leases_expired"] == len(jumps) - 1
        started = time.monotonic()
        daemon.stop()
        assert time.monotonic() - started < 10
    finally:
        daemon.__exit__()


def test_certificates_are_judged_by_the_wall_clock_at_every_handshake(bin_dir, folder):
    site = Site(bin_dir, folder)
    engine = site.authority.issue("a", "URI:spiffe://example.org/team-a")
    shift = Shift(folder)
    shift.set("+0")
    try:
        shift.start(site.daemon)
        assert not site.refuses(engine)
        for jump in ("+30d", "-30d"):
            shift.set(jump)
            assert site.refuses(engine), f"{jump}: accepted a certificate that is not valid then"
        shift.set("+0")
        assert not site.refuses(engine)
    finally:
        site.daemon.__exit__()
