"""put, get, match: bytes come back exactly, and each way of being wrong has its code."""

import os
import threading

import pytest
from conftest import BLOCK_TOKENS, PAGE_BYTES, SPEC_FLAGS

NOTHING_MATCHED, USAGE, FAILED = 3, 2, 1


def get(kvctl, namespace, prompt, out, **options):
    return kvctl.json("get", namespace, "--tokens", prompt.tokens_path, "--out", out, **options)


def test_what_was_put_comes_back(kvctl, namespace, make_prompt, tmp_path):
    prompt = make_prompt(20, 1)
    stored = kvctl.json("put", namespace, *prompt.put_arguments())
    assert (stored["blocks"], stored["stored_blocks"], stored["existing_blocks"]) == (20, 20, 0)
    assert stored["through"] == "shared_memory"
    found = get(kvctl, namespace, prompt, tmp_path / "out")
    assert (found["matched_blocks"], found["matched_tokens"], found["bytes"]) == (20, 20 * BLOCK_TOKENS, 20 * PAGE_BYTES)
    assert sum(found["by_tier"].values()) == 20 and sorted(found["by_tier"]) == ["dram", "gpu", "nvme"]
    assert (tmp_path / "out").read_bytes() == prompt.data


def test_a_second_put_stores_nothing_and_changes_nothing(kvctl, namespace, make_prompt, tmp_path):
    prompt = make_prompt(5, 2)
    kvctl("put", namespace, *prompt.put_arguments())
    other_bytes = prompt.data_path.with_suffix(".other")
    other_bytes.write_bytes(bytes(len(prompt.data)))
    again = kvctl.json("put", namespace, "--tokens", prompt.tokens_path, "--data", other_bytes)
    assert (again["stored_blocks"], again["existing_blocks"]) == (0, 5)
    get(kvctl, namespace, prompt, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == prompt.data


def test_a_longer_prefix_adds_only_its_own_blocks(kvctl, namespace, make_prompt, tmp_path):
    long = make_prompt(9, 3)
    short_tokens, short_data = tmp_path / "short.txt", tmp_path / "short.bin"
    short_tokens.write_text("\n".join(map(str, long.ids[:4 * BLOCK_TOKENS])))
    short_data.write_bytes(long.data[:4 * PAGE_BYTES])
    kvctl("put", namespace, "--tokens", short_tokens, "--data", short_data)
    assert kvctl.json("match", namespace, "--tokens", long.tokens_path)["matched_blocks"] == 4
    stored = kvctl.json("put", namespace, *long.put_arguments())
    assert (stored["stored_blocks"], stored["existing_blocks"]) == (5, 4)
    get(kvctl, namespace, long, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == long.data


def test_a_match_is_the_longest_common_prefix(kvctl, namespace, make_prompt, tmp_path):
    prompt = make_prompt(8, 4)
    kvctl("put", namespace, *prompt.put_arguments())
    other = list(prompt.ids)
    other[5 * BLOCK_TOKENS + 3] ^= 1
    (tmp_path / "other.txt").write_text(" ".join(map(str, other)))
    found = kvctl.json("match", namespace, "--tokens", tmp_path / "other.txt")
    assert (found["matched_blocks"], found["matched_tokens"], found["bytes"]) == (5, 5 * BLOCK_TOKENS, 5 * PAGE_BYTES)


def test_the_tail_that_fills_no_block_is_not_stored(kvctl, namespace, make_prompt):
    prompt = make_prompt(3, 5, extra_tokens=BLOCK_TOKENS - 1)
    assert kvctl.json("put", namespace, *prompt.put_arguments())["blocks"] == 3


def test_tokens_come_from_standard_input(kvctl, namespace, make_prompt):
    prompt = make_prompt(2, 6)
    text = prompt.tokens_path.read_text()
    kvctl("put", namespace, "--tokens", "-", "--data", prompt.data_path, input=text)
    assert kvctl.json("match", namespace, "--tokens", "-", input=text)["matched_blocks"] == 2


def test_data_come_from_a_pipe(kvctl, namespace, make_prompt, tmp_path):
    prompt = make_prompt(4, 7)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(prompt.data))
    writer.start()
    stored = kvctl.json("put", namespace, "--tokens", prompt.tokens_path, "--data", tmp_path / "pipe")
    writer.join()
    assert stored["stored_blocks"] == 4


def test_nothing_matched_is_code_3_and_leaves_the_file(kvctl, namespace, make_prompt, tmp_path):
    prompt = make_prompt(3, 8)
    assert kvctl.json("match", namespace, "--tokens", prompt.tokens_path, code=NOTHING_MATCHED)["matched_blocks"] == 0
    (tmp_path / "out").write_text("as it was")
    found = get(kvctl, namespace, prompt, tmp_path / "out", code=NOTHING_MATCHED)
    assert (found["matched_blocks"], found["bytes"]) == (0, 0)
    assert (tmp_path / "out").read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data-8.bin", "out", "tokens-8.txt"]


def test_fewer_tokens_than_a_block_match_nothing(kvctl, namespace):
    assert kvctl.json("match", namespace, "--tokens", "-", input="1 2 3", code=NOTHING_MATCHED)["matched_tokens"] == 0


@pytest.mark.parametrize(("text", "said"), [
    ("1 2 x", ":1:5: \"x\""), ("1\n2\n-3", ":3:1:"), ("4294967296", "4294967295"), ("1,2", "\"1,2\"")])
def test_a_bad_token_is_named_with_its_place(kvctl, namespace, text, said):
    error = kvctl.error("match", namespace, "--tokens", "-", input=text, code=USAGE)
    assert error["code"] == "INVALID_ARGUMENT" and said in error["message"]


@pytest.mark.parametrize("difference", [-1, 1, -PAGE_BYTES])
def test_data_of_another_size_are_refused(kvctl, namespace, make_prompt, difference):
    prompt = make_prompt(3, 9)
    prompt.data_path.write_bytes((prompt.data + b"x")[:len(prompt.data) + difference])
    error = kvctl.error("put", namespace, *prompt.put_arguments(), code=USAGE)
    assert "bytes" in error["message"]
    assert kvctl.json("match", namespace, "--tokens", prompt.tokens_path, code=NOTHING_MATCHED)["matched_blocks"] == 0


def test_too_few_tokens_to_put_are_refused(kvctl, namespace, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    error = kvctl.error("put", namespace, "--tokens", "-", "--data", tmp_path / "empty", input="1 2 3", code=USAGE)
    assert "less than one block" in error["message"]


def test_too_many_blocks_are_refused(kvctl, namespace):
    text = "7 " * (65536 * BLOCK_TOKENS)
    kvctl.json("match", namespace, "--tokens", "-", input=text, code=NOTHING_MATCHED)
    error = kvctl.error("match", namespace, "--tokens", "-", input=text + "7 " * BLOCK_TOKENS, code=USAGE)
    assert "65536 blocks" in error["message"]


@pytest.mark.parametrize("command", ["match", "put", "get", "clear"])
def test_an_unknown_namespace_is_not_found(kvctl, make_prompt, tmp_path, command):
    prompt = make_prompt(1, 10)
    extra = {"match": ("--tokens", prompt.tokens_path), "put": prompt.put_arguments(),
             "get": ("--tokens", prompt.tokens_path, "--out", tmp_path / "out"), "clear": ()}[command]
    assert kvctl.error(command, "no-such", *extra, code=FAILED)["code"] == "NOT_FOUND"


def test_files_that_are_not_there_are_wrong_usage(kvctl, namespace, make_prompt, tmp_path):
    prompt = make_prompt(1, 11)
    kvctl.error("match", namespace, "--tokens", tmp_path / "none", code=USAGE)
    kvctl.error("put", namespace, "--tokens", prompt.tokens_path, "--data", tmp_path / "none", code=USAGE)
    kvctl.error("get", namespace, "--tokens", prompt.tokens_path, "--out", tmp_path / "none" / "out", code=USAGE)


def test_a_full_disk_is_said_and_not_counted_as_done(kvctl, namespace, make_prompt):
    prompt = make_prompt(2, 12)
    kvctl("put", namespace, *prompt.put_arguments())
    error = get(kvctl, namespace, prompt, "/dev/full", code=FAILED)["error"]
    assert error["code"] == "RESOURCE_EXHAUSTED"


def test_a_prefix_larger_than_a_batch_comes_back(kvctl, make_prompt, tmp_path):
    flags = list(SPEC_FLAGS)
    flags[1], flags[-1] = "large", "256KiB"
    kvctl("open", "large", *flags)
    prompt = make_prompt(44, 13, page_bytes=4 * 262144)  # 44 MiB; kvctl reserves 32 MiB at a time
    kvctl("put", "large", *prompt.put_arguments())
    get(kvctl, "large", prompt, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == prompt.data
