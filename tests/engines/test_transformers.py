"""The engine against Hugging Face transformers, run side by side: every family, long prompts, and the real model."""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]
import engine_reference as er  # noqa: E402

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
import hugging_face  # noqa: E402

pytestmark = [pytest.mark.engines, pytest.mark.skipif(er.kvengine() is None, reason="kvengine is not built")]

REAL_MODEL = Path(os.environ.get("KVSTORE_MODEL_DIR", er.ROOT / "build" / "models" / "smollm2"))
TEXT = Path("/usr/share/common-licenses/GPL-2")
FAMILIES = ("llama", "llama3-scaled", "qwen2", "qwen3-wide-heads", "qwen3-moe", "deepseek-v2")
# bf16 is slow on CPUs without bf16 arithmetic; its error hardly depends on the length (0.08 to 0.11 from 63 to 700 tokens).
BF16_TOKENS = 512
KV_DTYPES = sorted(er.ERROR_LIMIT)
LONG = [case for case in er.CASES if case.name in FAMILIES]


def bf16_error(folder, exact, prompt_ids, output_ids):
    rounded = hugging_face.load(folder, "bfloat16")
    pair = [hugging_face.logits_along(model, prompt_ids, output_ids) for model in (exact, rounded)]
    return er.rms(pair[0] - pair[1])


def compare(folder, prompt_ids, output_tokens, scratch, kv_dtype):
    """Asserts the gates; returns (our RMS error, that of transformers in bf16)."""
    ids, logits, _ = er.generate(folder, prompt_ids, output_tokens, scratch, kv_dtype)
    exact = hugging_face.load(folder, "float32")
    # Along our own tokens, so that every step of ours has a reference whatever was chosen before.
    reference = hugging_face.logits_along(exact, prompt_ids, ids)
    ours, theirs = er.rms(logits - reference), bf16_error(folder, exact, prompt_ids[:BF16_TOKENS], ids)
    assert ours <= er.ERROR_LIMIT[kv_dtype] * theirs
    best = [int(row.argmax()) for row in reference]
    for step, (mine, right) in enumerate(zip(ids, best, strict=True)):
        gap = reference[step][right] - reference[step][mine]
        assert gap <= 8 * ours, f"step {step}: token {mine} instead of {right}, {gap:.4f} below it"
    return ours, theirs


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("length", [1000, 4097])
@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_long_prompts_agree(tmp_path, case, length, kv_dtype):
    folder = er.make_model(case, tmp_path)
    ours, theirs = compare(folder, er.prompt(length, case.vocab), 4, tmp_path, kv_dtype)
    print(f"{case.name} {length} {kv_dtype}: rms {ours:.2e}, bf16 {theirs:.2e}")


def test_llama3_scaling_agrees_beyond_8192_positions(tmp_path):
    scaled = ("--layers", "4", "--max-positions", "16384", "--rope-scaling", "llama3:4:4096", "--seed", "9")
    case = er.Case("far", ("--family", "llama", "--hidden", "128", "--vocab", "512", *scaled), ())
    compare(er.make_model(case, tmp_path), er.prompt(8500, case.vocab), 2, tmp_path, "f32")


@pytest.fixture(scope="module")
def real_tokens():
    if not (REAL_MODEL / "config.json").exists():
        pytest.skip(f"{REAL_MODEL} is not there: tools/fetch_model smollm2 --out {REAL_MODEL}")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(REAL_MODEL / "tokenizer.json"))
    ids = tokenizer.encode(TEXT.read_text()).ids
    assert len(ids) == 4039
    return ids


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("length", [5, 257, 1024])
def test_the_real_model_agrees(tmp_path, real_tokens, length, kv_dtype):
    ours, theirs = compare(REAL_MODEL, real_tokens[:length], 8, tmp_path, kv_dtype)
    print(f"smollm2 {length} {kv_dtype}: rms {ours:.2e}, bf16 {theirs:.2e}")


def test_the_real_model_gives_the_same_greedy_tokens(tmp_path, real_tokens):
    ids, logits, _ = er.generate(REAL_MODEL, real_tokens[:300], 24, tmp_path)
    expected, reference = hugging_face.greedy(hugging_face.load(REAL_MODEL, "float32"), real_tokens[:300], 24)
    error = er.rms(logits[0] - reference[0])
    assert er.first_difference(ids, expected, reference, 8 * error) is None
