"""Where the daemon is, and what happens when it is not there, does not answer, or is another one."""

import json
import os
import signal
import socket
import subprocess
import time

import pytest
from conftest import SPEC_FLAGS, Daemon, Kvctl

NO_DAEMON, USAGE, FAILED, NOTHING_MATCHED = 4, 2, 1, 3


def run(bin_dir, *arguments, target=None, **environment):
    env = {**{key: value for key, value in os.environ.items() if key != "KVSTORE_TARGET"}, **environment}
    command = [bin_dir / "kvctl", *(["--target", target] if target else []), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=env, check=False)


def error_of(done):
    return json.loads(done.stdout)["error"]


def test_no_socket_is_no_daemon(bin_dir, tmp_path):
    done = run(bin_dir, "--json", "status", target=f"unix:{tmp_path}/none.sock")
    assert done.returncode == NO_DAEMON
    assert error_of(done)["code"] == "UNAVAILABLE" and "No such file" in error_of(done)["message"]


def test_a_socket_that_nobody_listens_on_is_no_daemon(bin_dir, tmp_path):
    path = f"{tmp_path}/dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert run(bin_dir, "status", target=f"unix:{path}").returncode == NO_DAEMON


def test_a_closed_port_is_no_daemon(bin_dir):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    done = run(bin_dir, "--json", "status", target=f"tcp:127.0.0.1:{port}")
    assert done.returncode == NO_DAEMON and "refused" in error_of(done)["message"]
    assert time.monotonic() - start < 3


def test_an_error_without_json_goes_to_stderr(bin_dir, tmp_path):
    done = run(bin_dir, "status", target=f"unix:{tmp_path}/none.sock")
    assert done.stdout == "" and done.stderr.startswith("kvctl: ") and done.stderr.endswith("(UNAVAILABLE)\n")


@pytest.mark.parametrize("target", ["/run/x.sock", "unix:", "tcp:host", "tcp::1", "http://x", "unix:" + "x" * 200])
def test_a_target_that_is_none_is_wrong_usage(bin_dir, target):
    done = run(bin_dir, "--json", "status", target=target)
    assert done.returncode == USAGE and error_of(done)["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("arguments", [(), ("bogus",), ("status", "extra"), ("--timeout", "0s", "status"),
                                       ("--timeout", "soon", "status"), ("put",), ("get", "x", "--tokens", "y")])
def test_a_wrong_command_line_is_wrong_usage(bin_dir, arguments):
    done = run(bin_dir, "--json", *arguments)
    assert done.returncode == USAGE and error_of(done)["code"] == "INVALID_ARGUMENT"


def test_the_environment_names_the_target_and_the_flag_wins(bin_dir, daemon, tmp_path):
    assert run(bin_dir, "status", KVSTORE_TARGET=daemon.target).returncode == 0
    nobody = f"unix:{tmp_path}/none.sock"
    assert run(bin_dir, "status", KVSTORE_TARGET=nobody).returncode == NO_DAEMON
    assert run(bin_dir, "status", target=daemon.target, KVSTORE_TARGET=nobody).returncode == 0


def test_global_flags_may_follow_the_command(bin_dir, daemon):
    done = run(bin_dir, "status", "--json", "--timeout", "2s", "--target", daemon.target)
    assert done.returncode == 0 and json.loads(done.stdout)["health"]


def test_help_and_version_need_no_daemon(bin_dir):
    assert run(bin_dir, "--help").returncode == 0
    assert run(bin_dir, "--version").stdout.startswith("kvctl ")


def test_output_to_a_full_disk_is_a_failure(bin_dir, daemon):
    with open("/dev/full", "w") as full:
        done = subprocess.run([bin_dir / "kvctl", "--target", daemon.target, "status"], stdout=full, timeout=30, check=False)
    assert done.returncode == FAILED


@pytest.fixture
def stopped(daemon):
    """Stops the daemon's process; whatever the test does, it goes on afterwards."""
    daemon.process.send_signal(signal.SIGSTOP)
    yield daemon
    daemon.process.send_signal(signal.SIGCONT)
    daemon.wait_until("answers again", lambda: daemon.kvctl("status", check=False).returncode == 0)


@pytest.mark.parametrize("command", [("status",), ("verify",), ("open", "x", *SPEC_FLAGS), ("match", "x", "--tokens", "/dev/null"),
                                     ("ls", "x"), ("config",), ("clear", "x")])
def test_a_daemon_that_does_not_answer_is_a_deadline_not_a_hang(stopped, command):
    start = time.monotonic()
    error = Kvctl(stopped).error("--timeout", "500ms", *command, code=FAILED)
    assert error["code"] == "DEADLINE_EXCEEDED"
    assert time.monotonic() - start < 5


def test_a_daemon_that_stops_during_a_put_is_a_deadline(kvctl, daemon, namespace, make_prompt, tmp_path):
    prompt = make_prompt(4, 30)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [daemon.bin_dir / "kvctl", "--target", daemon.target, "--json", "--timeout", "1s", "put", namespace, "--tokens",
               str(prompt.tokens_path), "--data", str(pipe)]
    putting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        with open(pipe, "wb") as data:  # opens when kvctl does: after its first calls
            data.write(prompt.data[:-1])
            data.flush()
            daemon.process.send_signal(signal.SIGSTOP)
            data.write(prompt.data[-1:])
        out, _ = putting.communicate(timeout=20)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
        putting.kill()
        putting.wait()
    assert putting.returncode == FAILED and json.loads(out)["error"]["code"] in ("DEADLINE_EXCEEDED", "UNAVAILABLE")
    daemon.wait_until("answers again", lambda: daemon.kvctl("status", check=False).returncode == 0)
    # Either the save went through after all or nothing of it is there: never half a page.
    kvctl("put", namespace, *prompt.put_arguments())
    kvctl("get", namespace, "--tokens", prompt.tokens_path, "--out", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == prompt.data


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_over_tcp_the_same_bytes_travel_inline(bin_dir, make_prompt, tmp_path):
    address = f"tcp:127.0.0.1:{free_port()}"
    with Daemon(bin_dir, 'insecure = true\n[tier.dram]\nbytes = "64MiB"\n', listen=(address,)):

        def over_tcp(*arguments, code=0):
            done = subprocess.run([bin_dir / "kvctl", "--json", "--target", address, *map(str, arguments)], capture_output=True,
                                  text=True, timeout=60, check=False)
            assert done.returncode == code, done.stdout + done.stderr
            return json.loads(done.stdout)

        over_tcp("open", "inline", *SPEC_FLAGS)
        assert over_tcp("status", code=FAILED)["error"]["code"] == "PERMISSION_DENIED"
        prompt = make_prompt(150, 31)  # several messages of 1 MiB
        stored = over_tcp("put", "inline", *prompt.put_arguments())
        assert (stored["stored_blocks"], stored["through"]) == (150, "inline")
        found = over_tcp("get", "inline", "--tokens", prompt.tokens_path, "--out", tmp_path / "out")
        assert found["matched_blocks"] == 150 and (tmp_path / "out").read_bytes() == prompt.data
        other = make_prompt(1, 32)
        over_tcp("match", "inline", "--tokens", other.tokens_path, code=NOTHING_MATCHED)
        over_tcp("get", "inline", "--tokens", other.tokens_path, "--out", tmp_path / "none", code=NOTHING_MATCHED)
        assert not (tmp_path / "none").exists()


def test_a_restart_keeps_what_is_on_nvme(kvctl, daemon, namespace, make_prompt, tmp_path):
    prompt = make_prompt(12, 33)
    kvctl("put", namespace, *prompt.put_arguments())
    daemon.wait_until("written to NVMe", lambda: len(kvctl.json("ls", namespace, "--tier", "nvme")["blocks"]) == 12)
    daemon.stop()
    daemon.start()
    daemon.wait_until("recovered", lambda: not kvctl.json("status")["is_recovering"])
    found = kvctl.json("get", namespace, "--tokens", prompt.tokens_path, "--out", tmp_path / "out")
    assert found["by_tier"] == {"gpu": 0, "dram": 0, "nvme": 12}
    assert (tmp_path / "out").read_bytes() == prompt.data
