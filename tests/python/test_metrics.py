"""server.http: the page that Prometheus scrapes, the health answer, and that nothing can be changed there."""

import http.client
import json
import re
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest
from conftest import SPEC_FLAGS, Kvctl
from mainjob.daemon import Daemon
from prometheus_client.parser import text_string_to_metric_families

LABELS = {"tier", "state", "reason", "kind", "operation", "code", "tenant", "version", "commit", "le"}


class Monitored:
    """A daemon with a page, and what a scraper does."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.kvctl = Kvctl(daemon)

    def port(self):
        found = re.findall(r" metrics http=127\.0\.0\.1:(\d+)", self.daemon.log.read_text())
        return int(found[-1])

    def ask(self, path, method="GET", body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port(), timeout=10)
        try:
            connection.request(method, path, body=body)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type"), answer.read().decode()
        finally:
            connection.close()

    def families(self):
        status, content_type, text = self.ask("/metrics")
        assert status == 200 and content_type.startswith("text/plain; version=0.0.4"), text
        return {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, name, **labels):
        time.sleep(0.12)  # a snapshot is kept for 100 ms
        for family in self.families().values():
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        raise AssertionError(f"no sample {name}{labels}")


@pytest.fixture(scope="module")
def monitored(bin_dir, disk_folder):
    folder = Path(tempfile.mkdtemp(dir=disk_folder))
    (folder / "nvme").mkdir()
    config = (f'http = "127.0.0.1:0"\n[tier.dram]\nbytes = "64MiB"\n[tier.nvme]\ndirs = ["{folder / "nvme"}"]\nbytes = "256MiB"\n'
              '[policy.write]\nnvme = "back"\n')
    try:
        with Daemon(bin_dir, config, folder=folder) as running:
            yield Monitored(running)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def stored(monitored, make_prompt, request):
    """A namespace with six blocks."""
    name = request.node.name[:60]
    flags = list(SPEC_FLAGS)
    flags[1] = request.node.name
    monitored.kvctl("open", name, *flags)
    prompt = make_prompt(6, 40)
    monitored.kvctl("put", name, *prompt.put_arguments())
    return name, prompt


def test_the_page_is_what_prometheus_reads(monitored, stored):
    families = monitored.families()
    for family in families.values():
        assert family.documentation and family.type in ("counter", "gauge", "histogram"), family
        assert family.name.startswith("kvstore_"), family.name
        for sample in family.samples:
            assert set(sample.labels) <= LABELS, sample
    needed = ("store_verify", "store_verify_fail", "store_deadline_miss", "tiers_quarantine_pages", "tiers_hit_pages", "tiers_read_bytes",
              "tiers_write_bytes", "tiers_load_seconds", "service_call_seconds", "service_calls", "store_leases", "store_sessions",
              "daemon_core_queue_tasks", "tiers_waiting_moves", "service_connections", "daemon_build_info", "store_tenant_bytes",
              "store_tenant_quota_bytes", "store_tenant_share_bytes", "store_tenant_evicted_pages", "store_tenant_pins", "store_tenant_leases",
              "store_tenant_sessions", "store_tenant_moves", "tiers_breaker_state", "tiers_breaker_openings")
    missing = [name for name in needed if f"kvstore_{name}" not in families]
    assert not missing, sorted(families)


def test_names_and_samples_appear_once(monitored, stored):
    _, _, text = monitored.ask("/metrics")
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    samples = re.findall(r"^([^#\s]\S*) ", text, re.MULTILINE)
    assert len(set(names)) == len(names) and len(set(samples)) == len(samples)
    assert len(samples) < 1200, "labels have grown out of bounds"


def test_histograms_are_cumulative(monitored, stored):
    for family in monitored.families().values():
        if family.type != "histogram":
            continue
        last = {}
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                continue
            key = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            assert sample.value >= last.get(key, 0), sample
            last[key] = sample.value
        counts = {tuple(sorted(s.labels.items())): s.value for s in family.samples if s.name.endswith("_count")}
        assert counts == last


def test_what_is_done_is_counted(monitored, stored, tmp_path):
    name, prompt = stored
    before = {what: monitored.value(*what[:1], **dict(what[1:])) for what in (
        ("kvstore_tiers_hit_pages_total", ("tier", "dram")), ("kvstore_service_call_seconds_count", ("operation", "acquire")))}
    monitored.kvctl("get", name, "--tokens", prompt.tokens_path, "--out", tmp_path / "out")
    assert monitored.value("kvstore_tiers_hit_pages_total", tier="dram") == before[("kvstore_tiers_hit_pages_total", ("tier", "dram"))] + 6
    acquires = monitored.value("kvstore_service_call_seconds_count", operation="acquire")
    assert acquires > before[("kvstore_service_call_seconds_count", ("operation", "acquire"))]
    assert monitored.value("kvstore_service_calls_total", operation="commit", code="OK") >= 1
    assert monitored.value("kvstore_store_tenant_bytes", tenant="default", tier="dram") > 0


def test_quotas_and_what_they_evict_are_shown(monitored, stored, make_prompt):
    name, _ = stored
    monitored.kvctl("quota", "default", "--tier", "dram", "--bytes", "1MiB")
    try:
        assert monitored.value("kvstore_store_tenant_quota_bytes", tenant="default", tier="dram") == 1 << 20
        before = monitored.value("kvstore_store_tenant_evicted_pages_total", tenant="default", tier="dram")
        for seed in (41, 42):  # each fits into the quota, both do not
            monitored.kvctl("put", name, *make_prompt(40, seed).put_arguments())
        assert monitored.value("kvstore_store_tenant_evicted_pages_total", tenant="default", tier="dram") > before
        assert monitored.value("kvstore_store_tenant_bytes", tenant="default", tier="dram") <= 1 << 20
    finally:
        monitored.kvctl("quota", "default", "--tier", "dram", "--bytes", "none")
    assert monitored.value("kvstore_store_tenant_quota_bytes", tenant="default", tier="dram") == 0


def test_checks_of_pages_are_counted_by_tier(monitored, stored):
    before = monitored.value("kvstore_store_verify_total", tier="dram")
    checked = monitored.kvctl.json("verify", "--tier", "dram")["checked"]
    assert checked >= 6
    assert monitored.value("kvstore_store_verify_total", tier="dram") == before + checked
    assert monitored.value("kvstore_store_verify_fail_total", tier="dram", reason="differs") == 0


def test_a_breaker_is_in_one_state(monitored):
    for tier in ("dram", "nvme"):
        states = {state: monitored.value("kvstore_tiers_breaker_state", tier=tier, state=state) for state in ("closed", "open", "half-open")}
        assert states == {"closed": 1, "open": 0, "half-open": 0}
        assert monitored.value("kvstore_tiers_breaker_openings_total", tier=tier) == 0


def test_health_follows_a_drain(monitored, stored):
    name, prompt = stored
    status, content_type, body = monitored.ask("/healthz")
    assert status == 200 and content_type == "application/json" and json.loads(body) == {"health": "serving", "degraded": []}
    drained = monitored.kvctl.json("drain")
    assert drained["memory_only_blocks"] == 0 and drained["written_blocks"] >= 6
    try:
        time.sleep(0.12)
        status, _, body = monitored.ask("/healthz")
        assert status == 503 and json.loads(body)["health"] == "draining"
        assert monitored.value("kvstore_store_draining") == 1
        shown = monitored.kvctl.json("status")
        assert shown["health"] == "draining" and shown["drain"]["waiting_blocks"] == 0
        assert "no saves are taken" in monitored.kvctl("status").stdout
        assert monitored.kvctl.json("match", name, "--tokens", prompt.tokens_path)["by_tier"]["nvme"] == 0, "DRAM has them as well"
        assert len(monitored.kvctl.json("ls", name, "--tier", "nvme")["blocks"]) == 6
    finally:
        assert monitored.kvctl.json("resume") == {"was_draining": True}
    time.sleep(0.12)
    assert monitored.ask("/healthz")[0] == 200
    assert monitored.kvctl.json("status")["drain"] is None


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/drain", "/"])
def test_nothing_can_be_changed(monitored, method, path):
    status, _, _ = monitored.ask(path, method=method, body="x")
    assert status == 405
    assert monitored.kvctl.json("status")["health"] == "serving"


def test_other_pages_do_not_exist(monitored):
    for path in ("/", "/metrics/", "/config", "/../etc/passwd", "/debug/pprof"):
        assert monitored.ask(path)[0] == 404, path


def test_a_page_names_no_secret(monitored, tmp_path):
    (tmp_path / "spec.toml").write_text(
        "model='secret-model'\ndtype='bf16'\nblock_tokens=16\nslices=4\nslice_bytes=4096\nsalt='very-secret'\n")
    monitored.kvctl("open", "secret-name", "--spec", tmp_path / "spec.toml")
    text = monitored.ask("/metrics")[2] + monitored.ask("/healthz")[2]
    assert "secret" not in text
    assert not re.search(r"[0-9a-f]{32}", text), "a fingerprint or a token"


def test_a_stopped_daemon_answers_no_one_and_comes_back(monitored):
    process = monitored.daemon.process
    process.send_signal(signal.SIGSTOP)
    try:
        threads = Path(f"/proc/{process.pid}/task")
        monitored.daemon.wait_until("stopped", lambda: all(
            (task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in threads.iterdir()))
        with pytest.raises((TimeoutError, OSError)):
            connection = http.client.HTTPConnection("127.0.0.1", monitored.port(), timeout=0.5)
            connection.request("GET", "/healthz")
            connection.getresponse()
    finally:
        process.send_signal(signal.SIGCONT)
    assert monitored.ask("/healthz")[0] == 200


def test_scrapers_that_hang_do_not_stop_the_daemon(monitored, stored):
    name, prompt = stored
    hanging = [socket.create_connection(("127.0.0.1", monitored.port()), timeout=5) for _ in range(40)]
    for connection in hanging[::2]:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
    assert monitored.kvctl.json("match", name, "--tokens", prompt.tokens_path)["matched_blocks"] == 6
    for connection in hanging:
        connection.close()
    assert monitored.ask("/healthz")[0] == 200


@pytest.mark.parametrize("address", ["0.0.0.0:9464", "[::2]:9464", "9464", "example.com:80", "127.0.0.1:70000"])
def test_an_address_that_others_reach_is_refused(bin_dir, tmp_path, address):
    import subprocess
    done = subprocess.run([bin_dir / "kvstored", "--set", f"server.http={address}", "--check-config"], capture_output=True, text=True,
                          timeout=20, check=False)
    assert done.returncode == 2 and "server.http" in done.stderr and "127.0.0.1:PORT" in done.stderr
