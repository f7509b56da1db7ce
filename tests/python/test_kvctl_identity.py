"""Who may use a daemon: its own uid and root all of it, listed uids their own tenant, others nothing."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import SPEC_FLAGS, Daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")

LISTED, OTHER = 61234, 61235
FAILED = 1


@pytest.fixture(scope="module")
def shared(bin_dir):
    """A daemon that serves uid LISTED, in folders that any uid may pass, and a kvctl that it may run."""
    folder = Path(tempfile.mkdtemp(prefix="kvstore-identity-"))
    folder.chmod(0o755)
    shutil.copy(bin_dir / "kvctl", folder / "kvctl")
    (folder / "run").mkdir(mode=0o750)
    target = f"unix:{folder}/run/kvstored.sock"
    config = f'[auth]\nallow_uids = [{LISTED}]\n[tier.dram]\nbytes = "16MiB"\n'
    try:
        with Daemon(bin_dir, config, listen=(target,)):
            yield folder, target
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kvctl_as(uid, shared, *arguments, gid=0, code=0):
    folder, target = shared
    command = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", str(folder / "kvctl"), "--target", target, "--json",
               "--timeout", "2s", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd="/", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_listed_uid_uses_its_own_tenant(shared, make_prompt):
    kvctl_as(LISTED, shared, "open", "mine", *SPEC_FLAGS)
    prompt = make_prompt(3, 40)
    for path in (prompt.tokens_path, prompt.data_path):
        shutil.copy(path, shared[0])
    files = [shared[0] / prompt.tokens_path.name, shared[0] / prompt.data_path.name]
    assert kvctl_as(LISTED, shared, "put", "mine", "--tokens", files[0], "--data", files[1])["stored_blocks"] == 3
    assert kvctl_as(LISTED, shared, "match", "mine", "--tokens", files[0])["matched_blocks"] == 3
    # Root's tenant is another one: the same name and spec are another namespace, and hold nothing of it.
    assert kvctl_as(0, shared, "match", "mine", "--tokens", files[0], code=FAILED)["error"]["code"] == "NOT_FOUND"
    kvctl_as(0, shared, "open", "mine", *SPEC_FLAGS)
    assert kvctl_as(0, shared, "match", "mine", "--tokens", files[0], code=3)["matched_blocks"] == 0


def test_a_listed_uid_may_not_act_for_another_tenant_or_administer(shared):
    error = kvctl_as(LISTED, shared, "open", "theirs", *SPEC_FLAGS, "--tenant", "default", code=FAILED)["error"]
    assert error["code"] == "PERMISSION_DENIED"
    for command in (("status",), ("tiers",), ("namespaces",), ("ls", "mine"), ("evict", "mine", "--tier", "dram"), ("verify",), ("config",)):
        assert kvctl_as(LISTED, shared, *command, code=FAILED)["error"]["code"] == "PERMISSION_DENIED"


def test_other_uids_are_refused_whether_or_not_they_reach_the_socket(shared):
    for gid in (0, OTHER):  # gid 0 may enter the folder: then the daemon itself closes the door
        error = kvctl_as(OTHER, shared, "status", gid=gid, code=FAILED)["error"]
        assert error["code"] == "PERMISSION_DENIED"
