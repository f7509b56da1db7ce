"""The engine with a store: the same bits from every tier, and every failure of the store costs a recomputation and no more."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import engine_reference as er  # noqa: E402
from mainjob.daemon import Daemon  # noqa: E402

BLOCK_TOKENS = 16
PROMPT_TOKENS = 500  # 31 whole blocks and a tail
OUTPUT_TOKENS = 5
CONFIG = '[tier.gpu]\ndevice = "host"\nbytes = "64MiB"\n[tier.dram]\nbytes = "64MiB"\n[tier.nvme]\ndirs = ["{}"]\nbytes = "256MiB"\n'

pytestmark = pytest.mark.skipif(er.kvengine() is None, reason="kvengine is not built")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder of a case of er.CASES by its name, made when first asked for."""
    folder = tmp_path_factory.mktemp("models")
    cases = {case.name: case for case in er.CASES}
    return functools.cache(lambda name: er.make_model(cases[name], folder))


@pytest.fixture
def model(models):
    return models("llama")


@pytest.fixture
def daemon(bin_dir, disk_folder, tmp_path):
    folder = disk_folder / f"engine-{os.getpid()}-{tmp_path.name}"
    (folder / "nvme").mkdir(parents=True)
    with Daemon(bin_dir, CONFIG.format(folder / "nvme"), folder=folder) as running:
        yield running
    shutil.rmtree(folder)


class Request:
    """One prompt; every run of it gives a report with the logits' bytes."""

    def __init__(self, model, folder, length=PROMPT_TOKENS):
        self.folder = Path(folder)
        self.ids = self.folder / f"prompt-{length}.ids"
        self.ids.write_text(" ".join(map(str, er.prompt(length, er.CASES[0].vocab))))
        self.arguments = [str(er.kvengine()), "generate", "--model", str(model), "--prompt-ids", str(self.ids), "--max-tokens",
                          str(OUTPUT_TOKENS), "--block-tokens", str(BLOCK_TOKENS), "--json"]

    def start(self, target=None):
        store = ["--store", target] if target else ["--no-store"]
        logits = self.folder / "logits.f32"
        logits.unlink(missing_ok=True)
        return subprocess.Popen([*self.arguments, *store, "--logits-out", str(logits)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True)

    def finish(self, process, seconds=60):
        out, err = process.communicate(timeout=seconds)
        assert process.returncode == 0, err
        report = json.loads(out)
        report["logits"] = (self.folder / "logits.f32").read_bytes()
        return report

    def run(self, target=None):
        return self.finish(self.start(target))


def same_bits(report, expected):
    return report["output_ids"] == expected["output_ids"] and report["logits"] == expected["logits"]


def wait_for_pages(daemon, tier, pages):
    daemon.wait_until(f"{pages} pages in {tier}", lambda: daemon.tier(tier)["pages"] >= pages)


def evict(daemon, tier):
    for namespace in daemon.ask("namespaces")["namespaces"]:
        daemon.kvctl("evict", namespace["fingerprint"], "--tier", tier)


def restart(daemon):
    daemon.stop()
    daemon.start()
    daemon.wait_until("recovery", lambda: not daemon.ask("status")["is_recovering"])


# Dense, a mixture of experts, and latent attention with its own page layout.
@pytest.mark.parametrize(("name", "layout"), [("llama", "hnd"), ("qwen3-moe", "hnd"), ("deepseek-v2", "mla")])
def test_the_same_bits_come_from_every_tier(models, daemon, tmp_path, name, layout):
    request = Request(models(name), tmp_path)
    cold = request.run()
    blocks = PROMPT_TOKENS // BLOCK_TOKENS
    first = request.run(daemon.target)
    assert first["reused_tokens"] == 0 and same_bits(first, cold)
    assert [row["spec"]["layout"] for row in daemon.ask("namespaces")["namespaces"]] == [layout]
    wait_for_pages(daemon, "nvme", blocks)

    gpu = request.run(daemon.target)
    assert gpu["reused_by_tier"]["gpu"] == blocks * BLOCK_TOKENS and gpu["bytes_loaded"] == 0
    evict(daemon, "gpu")
    dram = request.run(daemon.target)
    assert dram["reused_by_tier"]["dram"] == blocks * BLOCK_TOKENS and dram["bytes_loaded"] > 0
    restart(daemon)
    nvme = request.run(daemon.target)
    assert nvme["reused_by_tier"]["nvme"] == blocks * BLOCK_TOKENS and nvme["bytes_loaded"] == dram["bytes_loaded"]
    for report in (gpu, dram, nvme):
        assert report["load_failures"] == {}
        assert same_bits(report, cold)


def test_prompts_of_every_length_around_block_boundaries_reuse_without_a_trace(model, daemon, tmp_path):
    Request(model, tmp_path, 200).run(daemon.target)
    wait_for_pages(daemon, "gpu", 200 // BLOCK_TOKENS)
    for length in (15, 16, 17, 31, 32, 33, 100, 191, 192, 193, 200):
        request = Request(model, tmp_path, length)
        report = request.run(daemon.target)
        assert report["reused_tokens"] == min(length // BLOCK_TOKENS * BLOCK_TOKENS, length - 1), length
        assert same_bits(report, request.run()), length


def test_without_a_daemon_the_request_succeeds_and_says_why(model, tmp_path):
    request = Request(model, tmp_path)
    report = request.run(f"unix:{tmp_path}/nobody.sock")
    assert report["load_failures"] == {"unavailable": PROMPT_TOKENS // BLOCK_TOKENS}
    assert same_bits(report, request.run())


def test_a_frozen_daemon_costs_its_deadline_and_no_more(model, daemon, tmp_path):
    request = Request(model, tmp_path)
    cold = request.run(daemon.target)
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        report = request.run(daemon.target)
        assert time.monotonic() - started < 20
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert sum(report["load_failures"].values()) == PROMPT_TOKENS // BLOCK_TOKENS
    assert same_bits(report, cold)


def test_a_daemon_killed_at_any_moment_costs_only_the_reuse(model, daemon, tmp_path):
    request = Request(model, tmp_path)
    expected = request.run()
    request.run(daemon.target)
    wait_for_pages(daemon, "nvme", PROMPT_TOKENS // BLOCK_TOKENS)
    seed = random.randrange(2**32)
    generator = random.Random(seed)
    for kill in range(10):
        process = request.start(daemon.target)
        time.sleep(generator.uniform(0, 0.25))
        daemon.kill()
        report = request.finish(process)
        assert same_bits(report, expected), f"kill {kill} of seed {seed}"
        daemon.start()


def test_a_rolling_restart_under_running_engines_costs_only_misses(model, daemon, tmp_path):
    lengths = (200, PROMPT_TOKENS)
    folders = [tmp_path / str(length) for length in lengths]
    for folder in folders:
        folder.mkdir()
    requests = [Request(model, folder, length) for folder, length in zip(folders, lengths)]
    expected = [request.run() for request in requests]
    has_ended = threading.Event()
    reports = [[], []]

    def engine(which):
        while not has_ended.is_set():
            reports[which].append(requests[which].run(daemon.target))

    with ThreadPoolExecutor() as pool:
        engines = [pool.submit(engine, which) for which in range(2)]
        try:
            for _ in range(4):
                time.sleep(1)
                daemon.kvctl("drain")
                restart(daemon)
        finally:
            has_ended.set()
        for running in engines:
            running.result()
    for which in range(2):
        assert len(reports[which]) >= 4
        for number, report in enumerate(reports[which]):
            assert same_bits(report, expected[which]), f"request {number}"
    assert any(report["reused_tokens"] > 0 for report in reports[1]), "nothing was ever reused"


def test_a_batch_answers_each_line_in_one_process_as_generate_does(model, daemon, tmp_path):
    request = Request(model, tmp_path)
    expected = request.run()
    logits = tmp_path / "batch.f32"
    good = {"prompt_ids_file": str(request.ids), "max_tokens": OUTPUT_TOKENS, "logits_out": str(logits)}
    command = [str(er.kvengine()), "batch", "--model", str(model), "--block-tokens", str(BLOCK_TOKENS), "--store", daemon.target, "--requests", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(line):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())  # before the next request is sent

        for reused in (0, PROMPT_TOKENS // BLOCK_TOKENS * BLOCK_TOKENS):
            answer = ask(json.dumps(good))
            assert answer["output_ids"] == expected["output_ids"] and answer["reused_tokens"] == reused
            assert logits.read_bytes() == expected["logits"]
        bad_requests = {"not json": "request 3", "{}": "one of prompt", '{"prompt_ids": [1, -2]}': "prompt_ids",
                        '{"prompt_ids": [1], "n": 2}': "n is 2", '{"prompt_ids": [1000000000]}': "vocabulary"}
        for bad, says in bad_requests.items():
            error = ask(bad)["error"]
            assert error["code"] == "INVALID_ARGUMENT" and says in error["message"]
        assert ask(json.dumps(good))["output_ids"] == expected["output_ids"], "a bad request ends nothing"
        process.stdin.close()
        assert process.wait(30) == 1, "one request failed"


def test_flipped_bits_on_disk_are_recomputed_and_counted(model, daemon, tmp_path):
    request = Request(model, tmp_path)
    cold = request.run(daemon.target)
    wait_for_pages(daemon, "nvme", PROMPT_TOKENS // BLOCK_TOKENS)
    daemon.stop()
    extents = sorted((daemon.folder / "nvme").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(extents[-1].read_bytes())
    used = [at for at in range(0, len(data), 4096) if any(data[at:at + 64])]
    generator = random.Random(1)
    for at in generator.sample(used, len(used) // 2):
        data[at + generator.randrange(64)] ^= 1 << generator.randrange(8)
    extents[-1].write_bytes(data)
    daemon.start()
    daemon.wait_until("recovery", lambda: not daemon.ask("status")["is_recovering"])
    report = request.run(daemon.target)
    assert report["reused_tokens"] < cold["prompt_tokens"] // BLOCK_TOKENS * BLOCK_TOKENS
    assert report["load_failures"].get("data_loss", 0) > 0
    assert same_bits(report, cold)
