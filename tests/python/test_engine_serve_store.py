"""kvengine serve with a daemon: shared prefixes, leases that go back, a daemon that dies."""

import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import engine_reference as er  # noqa: E402
from engine_server import EngineServer, generate, make_chat_model, value_of  # noqa: E402
from mainjob.daemon import Daemon  # noqa: E402

pytestmark = pytest.mark.skipif(er.kvengine() is None, reason="kvengine is not built")

CONFIG = '[tier.gpu]\ndevice = "host"\nbytes = "64MiB"\n[tier.dram]\nbytes = "64MiB"\n[tier.nvme]\ndirs = ["{}"]\nbytes = "256MiB"\n'
PROMPT = er.prompt(300, 512)  # 18 whole blocks and a tail
BLOCKS_TOKENS = 288


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_chat_model(er.CASES[0], tmp_path_factory.mktemp("model"))


@pytest.fixture
def daemon(bin_dir, disk_folder, tmp_path):
    folder = disk_folder / f"serve-{os.getpid()}-{tmp_path.name}"
    (folder / "nvme").mkdir(parents=True)
    with Daemon(bin_dir, CONFIG.format(folder / "nvme"), folder=folder) as running:
        yield running
    shutil.rmtree(folder)


def leases(daemon):
    return daemon.ask("status")["leases"]


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "deepseek-v2"])
def test_two_engines_on_one_daemon_share_prefixes(daemon, tmp_path, name):
    model = make_chat_model(next(case for case in er.CASES if case.name == name), tmp_path)
    expected = generate(model, tmp_path, PROMPT, 8)["output_text"]
    with EngineServer(model, tmp_path, "--store", daemon.target) as first, EngineServer(model, tmp_path, "--store", daemon.target) as second:
        cold = first.complete(prompt=PROMPT, max_tokens=8)
        assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        first.wait_until_idle()  # saved
        with openai.OpenAI(base_url=second.url, api_key="none", max_retries=0) as client:
            warm = client.completions.create(model="m", prompt=PROMPT, max_tokens=8, temperature=0)
        assert warm.usage.prompt_tokens_details.cached_tokens == BLOCKS_TOKENS
        assert warm.usage.kvstore["cached_tokens_by_tier"]["gpu"] == BLOCKS_TOKENS
        assert cold["choices"][0]["text"] == warm.choices[0].text == expected
        assert second.metric("kvstore_serving_reused_tokens_total") == BLOCKS_TOKENS
        for server in (first, second):
            server.wait_until_idle()
        daemon.wait_until("no lease is left", lambda: leases(daemon) == 0)


def test_a_conversation_that_grows_reuses_its_past(model, daemon, tmp_path):
    with EngineServer(model, tmp_path, "--store", daemon.target) as server:
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            messages = [{"role": "user", "content": "the store keeps what the model computed once " * 8}]
            cached = []
            for _ in range(3):
                answer = client.chat.completions.create(model="m", messages=messages, max_tokens=20, temperature=0)
                cached.append(answer.usage.prompt_tokens_details.cached_tokens)
                messages += [{"role": "assistant", "content": answer.choices[0].message.content}, {"role": "user", "content": "and then?"}]
                server.wait_until_idle()
        assert cached[0] == 0 < cached[1] <= cached[2]


def test_a_client_that_hangs_up_gives_its_lease_and_pages_back(model, daemon, tmp_path):
    with EngineServer(model, tmp_path, "--store", daemon.target) as server:
        server.complete(prompt=PROMPT, max_tokens=1)
        server.wait_until_idle()
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            stream = client.completions.create(model="m", prompt=PROMPT, max_tokens=7000, temperature=0, stream=True)
            next(iter(stream))
            assert leases(daemon) > 0
            stream.close()
        server.wait_until_idle()
        assert server.metric("kvstore_serving_ended_total", reason="cancelled") == 1
        assert server.metric("kvstore_serving_kv_tokens") == 0
        daemon.wait_until("no lease is left", lambda: leases(daemon) == 0)


def test_a_daemon_killed_under_a_running_engine_costs_the_reuse_and_comes_back(model, daemon, tmp_path):
    expected = generate(model, tmp_path, PROMPT, 40)["output_text"]
    has_ended = threading.Event()
    with EngineServer(model, tmp_path, "--store", daemon.target, "--max-sequences", 3) as server:
        def ask_until_the_end(_):
            texts = []
            while not has_ended.is_set():
                texts.append(server.complete(prompt=PROMPT, max_tokens=40)["choices"][0]["text"])
            return texts

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(ask_until_the_end, number) for number in range(4)]
            try:
                for _ in range(3):
                    time.sleep(0.7)
                    daemon.kill()
                    time.sleep(0.3)
                    daemon.start()
            finally:
                time.sleep(0.5)
                has_ended.set()
            texts = [text for answers in clients for text in answers.result()]
        assert len(texts) >= 8 and set(texts) == {expected}
        assert server.metric("kvstore_serving_ended_total", reason="failed") == 0

        def is_warm():
            answer = server.complete(prompt=PROMPT, max_tokens=1)
            server.wait_until_idle()
            return answer["usage"]["prompt_tokens_details"]["cached_tokens"] == BLOCKS_TOKENS

        daemon.wait_until("reuse after the restart", is_warm)


def test_a_daemon_that_comes_back_empty_is_used_again(model, bin_dir, tmp_path):
    with Daemon(bin_dir, '[tier.dram]\nbytes = "64MiB"\n', folder=tmp_path) as daemon, EngineServer(model, tmp_path, "--store", daemon.target) as server:

        def cached():
            usage = server.complete(prompt=PROMPT, max_tokens=1)["usage"]
            server.wait_until_idle()
            return usage["prompt_tokens_details"]["cached_tokens"]

        assert [cached(), cached()] == [0, BLOCKS_TOKENS]
        daemon.kill()
        assert cached() == 0
        daemon.start()
        daemon.wait_until("reuse", lambda: cached() == BLOCKS_TOKENS)


def test_an_engine_that_starts_before_its_daemon_uses_it_when_it_comes(model, daemon, tmp_path):
    daemon.stop()
    with EngineServer(model, tmp_path, "--store", daemon.target) as server:
        answer = server.complete(prompt=PROMPT, max_tokens=1)
        assert answer["usage"]["kvstore"]["load_failures"] == {"unavailable": BLOCKS_TOKENS // 16}
        daemon.start()

        def cached():
            usage = server.complete(prompt=PROMPT, max_tokens=1)["usage"]
            server.wait_until_idle()
            return usage["prompt_tokens_details"]["cached_tokens"]

        daemon.wait_until("reuse", lambda: cached() == BLOCKS_TOKENS)


def test_a_frozen_daemon_delays_loads_and_not_those_who_decode(model, daemon, tmp_path):
    with EngineServer(model, tmp_path, "--store", daemon.target) as server:
        server.complete(prompt=PROMPT, max_tokens=1)
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            stream = iter(client.completions.create(model="m", prompt="p", max_tokens=7000, temperature=0, stream=True))
            next(stream)
            daemon.process.send_signal(signal.SIGSTOP)
            try:
                with ThreadPoolExecutor(1) as pool:
                    other = pool.submit(server.complete, prompt=PROMPT, max_tokens=1)
                    server.wait_until("it waits for the store", lambda: server.requests()["loading"] == 1)
                    before = server.metric("kvstore_serving_steps_total")

                    def computes_while_it_waits():
                        samples = server.samples()
                        assert value_of(samples, "kvstore_serving_requests", state="loading") == 1, "the load did not wait, or stopped the steps"
                        return value_of(samples, "kvstore_serving_steps_total") >= before + 20

                    server.wait_until("steps go on", computes_while_it_waits)
                    next(stream)
                    answer = other.result()
                assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
                assert sum(answer["usage"]["kvstore"]["load_failures"].values()) == BLOCKS_TOKENS // 16
            finally:
                daemon.process.send_signal(signal.SIGCONT)
