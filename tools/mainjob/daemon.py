"""A kvstored of our own, in a folder of its own: for the main job and for tests."""

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

START_SECONDS = 20
STOP_SECONDS = 15
LOG_LINES = 20


class DaemonError(Exception):
    pass


class Daemon:
    """Runs until stop(); start() after it is a restart on the same folders. Use as a context manager."""

    def __init__(self, bin_dir, config, folder=None, listen=()):
        """`config`: TOML after [server]. `folder`: for NVMe data, kept by the caller. `listen`: more addresses."""
        self.bin_dir = Path(bin_dir)
        self.config = config
        self.listen = tuple(listen)
        self._sockets = tempfile.TemporaryDirectory(prefix="kvstore-")  # short: a socket path has at most 103 bytes
        self.folder = Path(folder) if folder else Path(self._sockets.name)
        self.target = f"unix:{self._sockets.name}/kvstored.sock"
        self.log = self.folder / "kvstored.log"
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()
        self._sockets.cleanup()

    def start(self):
        addresses = ", ".join(f'"{address}"' for address in (self.target, *self.listen))
        path = self.folder / "kvstored.toml"
        path.write_text(f"[server]\nlisten = [{addresses}]\n{self.config}")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(self.bin_dir / "kvstored"), "--config", str(path)], stdout=log, stderr=log)
        end = time.monotonic() + START_SECONDS
        while self.kvctl("status", check=False).returncode != 0:
            if self.process.poll() is not None:
                raise DaemonError(f"kvstored ended with {self.process.returncode} at its start:\n{self.log_tail()}")
            if time.monotonic() > end:
                raise DaemonError(f"kvstored does not answer after {START_SECONDS} s:\n{self.log_tail()}")
            time.sleep(0.05)

    def stop(self):
        """SIGTERM. Raises unless the daemon ends with 0 in time."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise DaemonError(f"kvstored did not end within {STOP_SECONDS} s of SIGTERM:\n{self.log_tail()}") from None
        if code != 0:
            raise DaemonError(f"kvstored ended with {code}:\n{self.log_tail()}")

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def log_tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]) if self.log.exists() else ""

    def kvctl(self, *arguments, check=True, **options):
        command = [str(self.bin_dir / "kvctl"), "--target", self.target, *arguments]
        options = {"capture_output": True, "text": True, "timeout": 120, **options}
        done = subprocess.run(command, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}, **options)
        if check and done.returncode != 0:
            raise DaemonError(f"kvctl {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def ask(self, *arguments):
        """The JSON answer of a kvctl command."""
        return json.loads(self.kvctl("--json", *arguments).stdout)

    def tier(self, name):
        """A row of `kvctl tiers`; None where there is no such tier."""
        return next((tier for tier in self.ask("tiers")["tiers"] if tier["tier"] == name), None)

    def wait_until(self, what, is_true, seconds=60):
        end = time.monotonic() + seconds
        while not is_true():
            if time.monotonic() > end:
                raise DaemonError(f"{what}: not after {seconds} s\n{self.log_tail()}")
            time.sleep(0.05)
