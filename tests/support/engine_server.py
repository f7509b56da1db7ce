"""A `kvengine serve` of our own, and small models that it serves."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import engine_reference as er
from prometheus_client.parser import text_string_to_metric_families

START_SECONDS = 60
STOP_SECONDS = 30
# The short ChatML template, as SmolLM2 and Qwen2 bring it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def make_chat_model(case, folder):
    """A random model that takes conversations."""
    model = er.make_model(case, folder)
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    return model


class EngineServer:
    """Runs until stop() or kill(). Use as a context manager."""

    def __init__(self, model, folder, *flags, name="m"):
        self.name = name
        self.log = Path(folder) / f"engine-{id(self)}.log"
        self.command = [str(er.kvengine()), "serve", "--model", str(model), "--served-name", name, "--http", "127.0.0.1:0",
                        "--block-tokens", "16", "--threads", "1", *map(str, flags)]
        self.process = None
        self.port = None

    def __enter__(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        end = time.monotonic() + START_SECONDS
        while not (found := re.search(r" serving http=127\.0\.0\.1:(\d+)", self.log.read_text())):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
        self.port = int(found.group(1))
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        return self.process.wait(STOP_SECONDS)

    def ask(self, path, body=None, method=None, headers=None, seconds=60):
        """Status, header fields, text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            if isinstance(body, dict):
                body = json.dumps(body)
            fields = {"Content-Type": "application/json", **(headers or {})} if body is not None else headers or {}
            connection.request(method or ("GET" if body is None else "POST"), path, body=body, headers=fields)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()
        finally:
            connection.close()

    def complete(self, **body):
        status, _, text = self.ask("/v1/completions", {"model": self.name, "temperature": 0, **body})
        assert status == 200, text
        return json.loads(text)

    def samples(self):
        """All of one moment."""
        status, _, text = self.ask("/metrics")
        assert status == 200
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def metric(self, name, **labels):
        return value_of(self.samples(), name, **labels)

    def requests(self):
        """How many there are, by state."""
        samples = self.samples()
        return {state: value_of(samples, "kvstore_serving_requests", state=state) for state in ("waiting", "loading", "running", "closing")}

    def wait_until(self, what, is_true, seconds=30):
        end = time.monotonic() + seconds
        while not is_true():
            assert time.monotonic() < end, f"{what}: not after {seconds} s; {self.requests()}\n{self.log.read_text()[-2000:]}"
            time.sleep(0.02)

    def wait_until_idle(self):
        self.wait_until("idle", lambda: not any(self.requests().values()))


def value_of(samples, name, **labels):
    """0 where there is no such sample."""
    return next((sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()), 0.0)


def generate(model, folder, prompt, max_tokens, *flags):
    """What `kvengine generate` says for the same request."""
    arguments = ["--prompt", prompt]
    if not isinstance(prompt, str):
        ids = Path(folder) / "generate.ids"
        ids.write_text(" ".join(map(str, prompt)))
        arguments = ["--prompt-ids", str(ids)]
    done = subprocess.run([str(er.kvengine()), "generate", "--model", str(model), *arguments, "--max-tokens", str(max_tokens),
                           "--block-tokens", "16", "--no-store", "--json", *flags], check=True, capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout)


def copy_model(model, folder, name):
    """The same model in another folder."""
    return shutil.copytree(model, Path(folder) / name)
