"""kvengine serve, asked by the real openai client and by clients that misbehave."""

import http.client
import json
import resource
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import engine_reference as er  # noqa: E402
from engine_server import EngineServer, generate, make_chat_model  # noqa: E402

pytestmark = pytest.mark.skipif(er.kvengine() is None, reason="kvengine is not built")

WORDS = "the store keeps what the model computed once and gives it back when the same words come again so that nobody waits "


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_chat_model(er.CASES[0], tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with EngineServer(model, tmp_path_factory.mktemp("server"), "--max-sequences", 4, "--queue", 64) as running:
        yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60) as made:
        yield made


def joined(stream):
    """Text, finish reason and usage of a stream of either endpoint."""
    text, finish, usage = "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            piece = choice.delta.content if hasattr(choice, "delta") else choice.text
            text += piece or ""
            finish = choice.finish_reason or finish
    return text, finish, usage


def test_a_completion_equals_generate_byte_for_byte_whole_and_streamed(client, model, tmp_path):
    expected = generate(model, tmp_path, WORDS, 40)
    whole = client.completions.create(model="m", prompt=WORDS, max_tokens=40, temperature=0)
    assert whole.choices[0].text == expected["output_text"] and whole.choices[0].finish_reason == "length"
    assert whole.usage.prompt_tokens == expected["prompt_tokens"] and whole.usage.completion_tokens == 40
    assert whole.usage.total_tokens == expected["prompt_tokens"] + 40 and whole.usage.prompt_tokens_details.cached_tokens == 0
    stream = client.completions.create(model="m", prompt=WORDS, max_tokens=40, temperature=0, stream=True,
                                       stream_options={"include_usage": True})
    text, finish, usage = joined(stream)
    assert (text, finish) == (expected["output_text"], "length") and usage.completion_tokens == 40


def test_a_chat_equals_generate_chat(client, model, tmp_path):
    expected = generate(model, tmp_path, "What is a page?", 24, "--chat")
    messages = [{"role": "user", "content": "What is a page?"}]
    whole = client.chat.completions.create(model="m", messages=messages, max_tokens=24, temperature=0)
    assert whole.choices[0].message.role == "assistant" and whole.choices[0].message.content == expected["output_text"]
    assert whole.usage.prompt_tokens == expected["prompt_tokens"]
    stream = client.chat.completions.create(model="m", messages=messages, max_completion_tokens=24, temperature=0, stream=True)
    assert joined(stream)[:2] == (expected["output_text"], "length")


def test_any_batch_gives_everybody_the_bytes_of_generate(server, model, tmp_path):
    prompts = [er.prompt(length, 512) for length in (1, 15, 16, 17, 40, 64, 100, 257)]
    expected = {len(prompt): generate(model, tmp_path, prompt, 24)["output_text"] for prompt in prompts}

    def ask(number):
        prompt = prompts[number % len(prompts)]
        return len(prompt), server.complete(prompt=prompt, max_tokens=24)["choices"][0]["text"]

    with ThreadPoolExecutor(12) as pool:
        for length, text in pool.map(ask, range(48)):
            assert text == expected[length], f"prompt of {length} tokens"
    steps, sequences = server.metric("kvstore_serving_steps_total"), server.metric("kvstore_serving_step_sequences_total")
    assert sequences > steps, "nothing was ever batched"


def test_sampling_repeats_with_its_seed(client):
    def text(seed):
        answer = client.completions.create(model="m", prompt="once", max_tokens=24, temperature=1.5, top_p=0.9, seed=seed,
                                           extra_body={"top_k": 50})
        return answer.choices[0].text

    assert text(1) == text(1) != text(2)


def test_a_stop_string_ends_the_answer_wherever_tokens_are_cut(client, server):
    whole = server.complete(prompt=WORDS, max_tokens=60)["choices"][0]["text"]
    pieces = [chunk.choices[0].text for chunk in client.completions.create(model="m", prompt=WORDS, max_tokens=60, temperature=0, stream=True)]
    # From the middle of one piece to the middle of the next, and one that begins like it but does not follow.
    at = next(i for i in range(10, len(pieces) - 1) if pieces[i] and pieces[i + 1] and pieces[i][-1:].isprintable())
    stop = pieces[at][-1:] + pieces[at + 1][:1]
    expected = whole[:whole.index(stop)]
    stops = [stop, stop[0] + "\u2603never"]
    answer = client.completions.create(model="m", prompt=WORDS, max_tokens=60, temperature=0, stop=stops)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected, "stop")
    assert answer.usage.completion_tokens < 60
    received = ""
    for chunk in client.completions.create(model="m", prompt=WORDS, max_tokens=60, temperature=0, stop=stops, stream=True):
        received += chunk.choices[0].text
        assert expected.startswith(received), "a part of a stop string was sent"
    assert received == expected


def test_every_event_of_a_stream_is_whole_characters(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {"model": "m", "prompt": WORDS, "max_tokens": 200, "temperature": 1.9, "seed": 3, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    events = [line for line in connection.getresponse().read().split(b"\n\n") if line]
    connection.close()
    assert events[-1] == b"data: [DONE]"
    text = "".join(choice["text"] for event in events[:-1] for choice in json.loads(event.removeprefix(b"data: ").decode("utf-8"))["choices"])
    assert text == server.complete(prompt=WORDS, max_tokens=200, temperature=1.9, seed=3)["choices"][0]["text"]


def test_models_are_listed_and_others_are_not_found(client):
    assert [entry.id for entry in client.models.list()] == ["m"]
    assert client.models.retrieve("m").id == "m"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError) as wrong:
        client.completions.create(model="other", prompt="p")
    assert wrong.value.code == "model_not_found"


def test_a_client_that_hangs_up_ends_its_request(client, server):
    cancelled = server.metric("kvstore_serving_ended_total", reason="cancelled")
    stream = client.completions.create(model="m", prompt="p", max_tokens=8000, temperature=0, stream=True)
    next(iter(stream))
    stream.close()
    body = json.dumps({"model": "m", "prompt": "p", "max_tokens": 8000, "temperature": 0})
    with socket.create_connection(("127.0.0.1", server.port)) as waiting:  # for an answer that comes in one piece
        waiting.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                        f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
        server.wait_until("it runs", lambda: server.requests()["running"] >= 1)
    server.wait_until("both are cancelled", lambda: server.metric("kvstore_serving_ended_total", reason="cancelled") == cancelled + 2)
    server.wait_until_idle()
    assert server.metric("kvstore_serving_kv_tokens") == 0


def test_overload_is_refused_with_429_and_the_others_finish(model, tmp_path):
    with EngineServer(model, tmp_path, "--max-sequences", 2, "--queue", 3) as server:
        def ask(_):
            status, fields, text = server.ask("/v1/completions", {"model": "m", "prompt": WORDS, "max_tokens": 300, "temperature": 0})
            return status, fields.get("Retry-After"), json.loads(text)

        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(ask, range(24)))
        good = [answer for status, _, answer in answers if status == 200]
        refused = [(after, answer) for status, after, answer in answers if status == 429]
        assert len(good) >= 5 and len(good) + len(refused) == 24 and refused
        assert len({answer["choices"][0]["text"] for answer in good}) == 1
        assert all(after == "1" and answer["error"]["type"] == "rate_limit_error" for after, answer in refused)
        assert server.metric("kvstore_serving_refused_total", reason="queue_full") == len(refused)
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            assert client.completions.create(model="m", prompt="p", max_tokens=1).choices


BAD = [
    # path, body, code, parameter, what the message says
    ("completions", "", 400, None, "not valid JSON"),
    ("completions", "{", 400, None, "not valid JSON"),
    ("completions", "[]", 400, None, "not a JSON object"),
    ("completions", '{"model":"m","model":"m","prompt":"p"}', 400, None, "twice"),
    ("completions", '{"model":"m","prompt":' + "[" * 200000 + "]" * 200000 + "}", 400, None, "nested"),
    ("completions", b'{"model":"m","prompt":"\xff"}', 400, None, "JSON"),
    ("completions", {"prompt": "p"}, 400, "model", "model"),
    ("completions", {"model": "x", "prompt": "p"}, 404, None, 'no model "x"'),
    ("completions", {"model": "m"}, 400, "prompt", "prompt"),
    ("completions", {"model": "m", "prompt": ""}, 400, "prompt", "no tokens"),
    ("completions", {"model": "m", "prompt": [512]}, 400, None, "vocabulary"),
    ("completions", {"model": "m", "prompt": ["a", "b"]}, 400, "prompt", "one text"),
    ("completions", {"model": "m", "prompt": "p", "n": 2}, 400, "n", "does not have n"),
    ("completions", {"model": "m", "prompt": "p", "surprise": 2}, 400, "surprise", "unknown parameter"),
    ("completions", {"model": "m", "prompt": "p", "logprobs": 1}, 400, "logprobs", "logprobs"),
    ("completions", {"model": "m", "prompt": "p", "max_tokens": 0}, 400, "max_tokens", "1 to"),
    ("completions", {"model": "m", "prompt": "p", "max_tokens": 8192}, 400, "max_tokens", "context of 8192"),
    ("completions", {"model": "m", "prompt": "p " * 9000, "max_tokens": 1}, 400, "prompt", "context of 8192"),
    ("completions", {"model": "m", "prompt": "p", "temperature": 3}, 400, "temperature", "0 to 2"),
    ("completions", {"model": "m", "prompt": "p", "stop": [""]}, 400, "stop", "0 bytes"),
    ("completions", {"model": "m", "prompt": "p", "stop": ["x" * 257]}, 400, "stop", "257 bytes"),
    ("completions", {"model": "m", "prompt": "p", "stop": list("abcde")}, 400, "stop", "at most 4"),
    ("chat/completions", {"model": "m", "messages": []}, 400, "messages", "messages"),
    ("chat/completions", {"model": "m", "messages": [{"role": "tool", "content": "x"}]}, 400, "messages", "role"),
    ("chat/completions", {"model": "m", "messages": [{"role": "user", "content": 7}]}, 400, "messages[0]", "content"),
    ("chat/completions", {"model": "m", "prompt": "p"}, 400, "prompt", "no prompt"),
    ("chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}, 400, "tools", "tools"),
    ("embeddings", {"model": "m", "input": "x"}, 404, None, "no such path"),
]


@pytest.mark.parametrize("path,body,code,parameter,says", BAD, ids=range(len(BAD)))
def test_bad_input_gets_a_clear_error(server, path, body, code, parameter, says):
    status, _, text = server.ask(f"/v1/{path}", body)
    error = json.loads(text)["error"]
    assert (status, error["param"]) == (code, parameter), text
    assert says in error["message"] and ".json" not in error["message"], "clients are not told files of the server"


def test_the_wrong_method_type_or_host_is_refused(server):
    good = json.dumps({"model": "m", "prompt": "p", "max_tokens": 1})
    assert server.ask("/v1/completions")[0] == 405
    assert server.ask("/v1/models", good)[0] == 405
    assert server.ask("/v1/completions", good, headers={"Content-Type": "text/plain"})[0] == 415  # what a web page may send unasked
    assert server.ask("/v1/completions", good, headers={"Host": "evil.example"})[0] == 403        # a name that was made to point here
    assert server.ask("/v1/completions", good, headers={"Content-Type": "application/json; charset=utf-8", "Host": "localhost:1"})[0] == 200


def test_a_body_that_is_too_large_gets_413_whether_it_says_so_or_not(server):
    body = json.dumps({"model": "m", "prompt": "p" * (9 << 20)})
    status, _, text = server.ask("/v1/completions", body)
    assert status == 413 and "larger than" in json.loads(text)["error"]["message"]
    chunks = (body[at:at + 65536].encode() for at in range(0, len(body), 65536))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/completions", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def memory_bytes(process):
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


def test_a_thousand_idle_connections_cost_little_and_keep_nobody_out(model, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with EngineServer(model, tmp_path, "--connections", 100) as server:
        server.complete(prompt="p", max_tokens=1)
        before = memory_bytes(server.process)
        idle = []
        try:
            for _ in range(1000):
                idle.append(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            assert server.complete(prompt=WORDS, max_tokens=5)["choices"]
            assert server.metric("kvstore_serving_connections") <= 100 + 32
            assert server.metric("kvstore_serving_evicted_connections_total") >= 800
            assert memory_bytes(server.process) - before < 32 << 20
        finally:
            for connection in idle:
                connection.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_request_that_trickles_is_cut_off(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n")
        slow.settimeout(1)
        started = time.monotonic()
        while time.monotonic() - started < 40:
            try:
                slow.sendall(b"{")
                if slow.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - started < 30
    assert server.complete(prompt="p", max_tokens=1)["choices"]


def test_sigterm_finishes_what_is_under_way_and_refuses_the_rest(model, tmp_path):
    with EngineServer(model, tmp_path, "--max-sequences", 2) as server:
        expected = server.complete(prompt=WORDS, max_tokens=1500)["choices"][0]["text"]
        with ThreadPoolExecutor() as pool:
            running = [pool.submit(server.complete, prompt=WORDS, max_tokens=1500) for _ in range(3)]
            server.wait_until("all are there", lambda: (server.requests()["running"], server.requests()["waiting"]) == (2, 1))
            server.terminate()
            server.wait_until("draining", lambda: server.ask("/health")[0] == 503)
            status, fields, text = server.ask("/v1/completions", {"model": "m", "prompt": "p"})
            assert status == 503 and fields["Retry-After"] == "1", text
            for answer in running:
                assert answer.result()["choices"][0]["text"] == expected
        assert server.wait() == 0
        assert "drain was cut short" not in server.log.read_text()


def test_a_drain_that_takes_too_long_tells_the_clients(model, tmp_path):
    with EngineServer(model, tmp_path, "--drain-time", "100ms") as server:
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            stream = iter(client.completions.create(model="m", prompt="p", max_tokens=8000, temperature=0, stream=True))
            next(stream)
            server.terminate()
            with pytest.raises(openai.APIError):
                for _ in stream:
                    pass
        assert server.wait() == 0
        assert "drain was cut short requests=1" in server.log.read_text()


def test_with_a_key_only_those_who_have_it_are_served(model, tmp_path):
    key = tmp_path / "key"
    key.write_text("sk-" + "7" * 30 + "\n")
    key.chmod(0o600)
    with EngineServer(model, tmp_path, "--api-key-file", key) as server:
        for path in ("/v1/models", "/metrics"):
            assert server.ask(path)[0] == 401
        assert server.ask("/health")[0] == 200
        with openai.OpenAI(base_url=server.url, api_key="sk-" + "7" * 30, max_retries=0) as client:
            assert client.completions.create(model="m", prompt="p", max_tokens=1).choices
        with openai.OpenAI(base_url=server.url, api_key="sk-" + "7" * 29 + "8", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.completions.create(model="m", prompt="p", max_tokens=1)


@pytest.mark.parametrize("flags,code,says", [
    (("--http", "0.0.0.0:0"), 2, "--api-key-file"),
    (("--grpc", "0.0.0.0:0"), 2, "--api-key-file"),
    (("--http", "example.org:80"), 2, "numeric"),
    (("--http", "127.0.0.1:99999"), 2, "port"),
    (("--step-tokens", "4"), 2, "--max-sequences"),
    (("--context", "9000"), 1, "8192 positions"),
    (("--kv-memory", "1KiB"), 1, "may need"),
    (("--api-key-file", "none"), 1, "none"),
])
def test_a_bad_command_line_says_what_is_wrong(model, flags, code, says):
    address = () if "--http" in flags else ("--http", "127.0.0.1:0")
    done = subprocess.run([str(er.kvengine()), "serve", "--model", str(model), *address, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == code and says in done.stderr + done.stdout


def test_a_key_that_others_can_read_is_refused(model, tmp_path):
    key = tmp_path / "key"
    key.write_text("sk-" + "7" * 30)
    key.chmod(0o644)
    done = subprocess.run([str(er.kvengine()), "serve", "--model", str(model), "--http", "127.0.0.1:0", "--api-key-file", str(key)],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "PERMISSION_DENIED" in done.stderr
