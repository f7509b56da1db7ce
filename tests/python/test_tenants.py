"""The tenants file: who gets in, as whom, what they can reach of others, and what a reload changes."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from conftest import SPEC_FLAGS, Daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")

A, A2, B, STRANGER = 61301, 61302, 61303, 61304
FAILED, NOTHING_MATCHED, USAGE = 1, 3, 2
TENANTS = f"""
[tenant.team-a]
uids = [{A}, {A2}]
[tenant.team-b]
uids = [{B}]
salt = "00112233445566778899aabbccddeeff"
quota = {{ dram = "8MiB", operations = 64 }}
"""


class Shared:
    """A daemon with a tenants file, in folders that any uid may pass, and a kvctl that it may run."""

    def __init__(self, bin_dir, folder):
        self.folder = folder
        self.tenants = folder / "tenants.toml"
        self.write(TENANTS)
        shutil.copy(bin_dir / "kvctl", folder / "kvctl")
        (folder / "run").mkdir(mode=0o750)
        self.target = f"unix:{folder}/run/kv.sock"
        config = f'[auth]\ntenants = "{self.tenants}"\n[tier.dram]\nbytes = "32MiB"\n[log]\nlevel = "debug"\n'
        self.daemon = Daemon(bin_dir, config, listen=(self.target,))

    def write(self, text, mode=0o644):
        self.tenants.write_text(text)
        self.tenants.chmod(mode)

    def log(self):
        return self.daemon.log.read_text()

    def reload(self, text=None, expect="reloaded what"):
        before = self.log().count(expect)
        if text is not None:
            self.write(text)
        self.daemon.process.send_signal(signal.SIGHUP)
        self.daemon.wait_until("reloaded", lambda: self.log().count(expect) > before, 10)

    def command(self, uid, *arguments, timeout="3s"):
        return ["setpriv", f"--reuid={uid}", "--regid=0", "--clear-groups", str(self.folder / "kvctl"), "--target", self.target, "--json",
                "--timeout", timeout, *map(str, arguments)]

    def kvctl(self, uid, *arguments, code=0):
        done = subprocess.run(self.command(uid, *arguments), capture_output=True, text=True, timeout=60, cwd="/", check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def error(self, uid, *arguments, code=FAILED):
        return self.kvctl(uid, *arguments, code=code)["error"]

    def prompt(self, made):
        """The files of a prompt where every uid can read them."""
        return [Path(shutil.copy(path, self.folder)) for path in (made.tokens_path, made.data_path)]


@pytest.fixture
def shared(bin_dir):
    folder = Path(tempfile.mkdtemp(prefix="kvstore-tenants-"))
    folder.chmod(0o755)
    made = Shared(bin_dir, folder)
    try:
        with made.daemon:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_uids_of_a_tenant_share_and_tenants_do_not(shared, make_prompt):
    tokens, data = shared.prompt(make_prompt(3, 70))
    fingerprints = {}
    for uid in (A, A2, B):
        fingerprints[uid] = shared.kvctl(uid, "open", "chat", *SPEC_FLAGS)["fingerprint"]
    assert fingerprints[A] == fingerprints[A2] != fingerprints[B]
    assert shared.kvctl(A, "put", "chat", "--tokens", tokens, "--data", data)["stored_blocks"] == 3
    assert shared.kvctl(A2, "match", "chat", "--tokens", tokens)["matched_blocks"] == 3
    # The same prompt, name and spec: nothing, neither by name nor by the other's fingerprint.
    assert shared.kvctl(B, "match", "chat", "--tokens", tokens, code=NOTHING_MATCHED)["matched_blocks"] == 0
    for command in (("match",), ("clear",), ("get", "--out", "/tmp/none")):
        files = () if command[0] == "clear" else ("--tokens", tokens)
        assert shared.error(B, command[0], fingerprints[A], *files, *command[1:])["code"] == "NOT_FOUND"
    assert shared.error(B, "open", "x", *SPEC_FLAGS, "--tenant", "team-a")["code"] == "PERMISSION_DENIED"
    assert shared.kvctl(A, "match", "chat", "--tokens", tokens)["matched_blocks"] == 3, "B's clear has cleared nothing"
    for uid in (A, B):
        for command in (("namespaces",), ("ls", "chat"), ("evict", "chat", "--tier", "dram"), ("verify",), ("config",), ("status",)):
            assert shared.error(uid, *command)["code"] == "PERMISSION_DENIED"


def test_an_unlisted_uid_is_not_connected_and_owners_stay_owners(shared):
    assert shared.error(STRANGER, "open", "x", *SPEC_FLAGS)["code"] == "PERMISSION_DENIED"
    assert shared.kvctl(0, "status")["health"] == "serving"
    # An owner acts for the tenant it names.
    mine = shared.kvctl(A, "open", "chat", *SPEC_FLAGS)["fingerprint"]
    assert shared.kvctl(0, "open", "chat", *SPEC_FLAGS, "--tenant", "team-a")["fingerprint"] == mine
    assert shared.kvctl(0, "open", "chat", *SPEC_FLAGS)["fingerprint"] != mine


def test_a_new_salt_makes_new_namespaces_and_is_told_to_nobody(shared):
    fingerprint = shared.kvctl(B, "open", "chat", *SPEC_FLAGS)["fingerprint"]
    shared.reload(TENANTS.replace("00112233", "99112233"))
    assert shared.error(B, "match", "chat", "--tokens", "/dev/null")["code"] == "NOT_FOUND", "the name means a new namespace"
    assert shared.error(B, "match", fingerprint, "--tokens", "/dev/null")["code"] == "NOT_FOUND", "nor is the old one found otherwise"
    assert shared.kvctl(B, "open", "chat", *SPEC_FLAGS)["fingerprint"] != fingerprint
    shown = json.dumps(shared.kvctl(0, "namespaces")) + shared.log()
    assert "112233445566778899aabbccddeeff" not in shown


@pytest.mark.parametrize("bad, parts", [
    (f"[tenant.a]\nuids = [{A}]\n[tenant.b]\nuids = [{A}]\n", ("tenants.toml:4", f"uid {A} belongs to tenant a already (line 2)")),
    ("[tenant.a]\ncolour = 1\n", ("tenants.toml:2: tenant.a.colour: unknown key", "valid: uids, certificates, salt, quota")),
    ("[tenant.a\n", ("tenants.toml:1",)),
])
def test_a_bad_file_keeps_the_old_one_and_says_so(shared, bad, parts):
    shared.kvctl(A, "open", "chat", *SPEC_FLAGS)
    shared.reload(bad, expect="not reloaded")
    status = shared.kvctl(0, "status")
    assert status["health"] == "degraded"
    line = next(line for line in status["degraded"] if "tenants file not reloaded" in line)
    assert all(part in line for part in parts)
    shared.kvctl(A, "open", "chat", *SPEC_FLAGS)
    shared.reload(TENANTS)
    assert shared.kvctl(0, "status")["health"] == "serving"


def test_a_file_that_others_can_write_is_refused(shared, bin_dir):
    shared.write(TENANTS, mode=0o664)
    shared.reload(expect="not reloaded")
    assert any("chmod go-w" in line for line in shared.kvctl(0, "status")["degraded"])
    command = [bin_dir / "kvstored", "--check-config", "--set", f"auth.tenants={shared.tenants}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == USAGE and "can be written by others" in done.stderr


def hold_put(shared, uid, tokens, folder):
    """A put that waits for data it never gets: a session, a reservation, and a call in progress."""
    pipe = folder / f"pipe-{uid}"
    os.mkfifo(pipe, 0o644)
    process = subprocess.Popen(shared.command(uid, "put", "chat", "--tokens", tokens, "--data", pipe, timeout="60s"), cwd="/",
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer = os.open(pipe, os.O_WRONLY)
    os.write(writer, b"x" * 1000)
    return process, writer


def test_a_reload_ends_who_is_gone_and_nobody_else(shared, make_prompt):
    tokens, _ = shared.prompt(make_prompt(3, 71))
    for uid in (A, A2, B):
        shared.kvctl(uid, "open", "chat", *SPEC_FLAGS)
    sessions = lambda: shared.kvctl(0, "status")["sessions"]  # noqa: E731
    held = {uid: hold_put(shared, uid, tokens, shared.folder) for uid in (A2, B)}
    shared.daemon.wait_until("both hold a session", lambda: sessions() == 2, 10)
    # A2 leaves its tenant, which stays; everything else is as it was.
    shared.reload(TENANTS.replace(f", {A2}]", "]"))
    shared.daemon.wait_until("one session is left", lambda: sessions() == 1, 2)
    assert shared.error(A2, "open", "chat", *SPEC_FLAGS)["code"] == "PERMISSION_DENIED"
    shared.kvctl(A, "open", "chat", *SPEC_FLAGS)
    time.sleep(0.3)  # a connection that was ended by mistake would be noticed by now
    assert held[B][0].poll() is None and sessions() == 1
    # B moves to another tenant: what it holds as team-b ends too, and its client comes back as team-a.
    held_by_b = lambda: next(t for t in shared.kvctl(0, "quota")["tenants"] if t["tenant"] == "team-b")  # noqa: E731
    assert held_by_b()["sessions"] == 1
    shared.reload(TENANTS.replace(f", {A2}]", f", {B}]").replace(f"uids = [{B}]\n", "uids = []\n"))
    shared.daemon.wait_until("team-b has no session", lambda: held_by_b()["sessions"] == 0, 2)
    assert held_by_b()["reservations"] == 0
    assert shared.kvctl(B, "match", "chat", "--tokens", tokens, code=NOTHING_MATCHED)["matched_blocks"] == 0, "team-a's namespace"
    for process, writer in held.values():
        os.close(writer)
        process.communicate(timeout=30)
        assert process.returncode != 0


def test_the_admin_socket_is_ours_alone_and_the_data_socket_serves_no_admin(shared):
    run = shared.folder / "run"
    assert (run / "kv.sock").stat().st_mode & 0o777 == 0o660
    admin = run / "kv.sock.admin"
    assert admin.stat().st_mode & 0o777 == 0o600
    # Named as data sockets and the other way round: neither serves the other's calls.
    done = subprocess.run([shared.folder / "kvctl", "--json", "--target", f"unix:{admin}", "open", "x", *map(str, SPEC_FLAGS)],
                          capture_output=True, text=True, timeout=30, check=False)
    assert json.loads(done.stdout)["error"]["code"] == "UNIMPLEMENTED"
    done = subprocess.run([shared.folder / "kvctl", "--json", "--target", shared.target, "--admin", shared.target, "status"],
                          capture_output=True, text=True, timeout=30, check=False)
    assert json.loads(done.stdout)["error"]["code"] == "UNIMPLEMENTED"
    # Even one who gets at the socket file is let in by uid only.
    admin.chmod(0o666)
    admin.parent.chmod(0o755)
    assert shared.error(A, "--admin", f"unix:{admin}", "status")["code"] == "PERMISSION_DENIED"
    assert shared.kvctl(0, "--admin", f"unix:{admin}", "status")["health"] == "serving"


def test_the_log_names_no_token_hash_salt_or_byte_of_a_page(shared, make_prompt):
    made = make_prompt(3, 72)
    tokens, data = shared.prompt(made)
    shared.kvctl(B, "open", "chat", *SPEC_FLAGS)
    shared.kvctl(B, "put", "chat", "--tokens", tokens, "--data", data)
    shared.kvctl(B, "match", "chat", "--tokens", tokens)
    hashes = [block["hash"] for block in shared.kvctl(0, "ls", shared.kvctl(0, "namespaces")["namespaces"][0]["fingerprint"])["blocks"]]
    shared.error(STRANGER, "open", "x", *SPEC_FLAGS)
    shared.error(B, "open", "x", *SPEC_FLAGS, "--tenant", "team-a")
    shared.reload("[tenant.a]\nsalt = 7\n", expect="not reloaded")
    shared.daemon.stop()
    log = shared.log()
    assert len(hashes) == 3 and "this uid may not connect" in log
    secrets = [*(str(token) for token in made.ids if token > 1 << 20), *hashes, *(page[:8].hex() for page in made.pages),
               "00112233445566778899aabbccddeeff"]
    assert [secret for secret in secrets if secret in log] == []
    assert "0x" not in log


def test_server_admin_moves_the_admin_socket(bin_dir):
    folder = Path(tempfile.mkdtemp(prefix="kvstore-admin-"))
    command = [bin_dir / "kvstored", "--set", f"server.listen=unix:{folder}/kv.sock", "--set", f"server.admin=unix:{folder}/ops/admin.sock",
               "--set", "tier.dram.bytes=16MiB"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        status = [bin_dir / "kvctl", "--target", f"unix:{folder}/kv.sock", "--admin", f"unix:{folder}/ops/admin.sock", "status"]
        end = time.monotonic() + 20
        while subprocess.run(status, capture_output=True, timeout=30, check=False).returncode != 0:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        assert not (folder / "kv.sock.admin").exists()
        assert (folder / "ops").stat().st_mode & 0o777 == 0o700
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
