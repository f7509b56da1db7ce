"""The engine against stored results of Hugging Face transformers (fp32), on small random models of every family. Needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import engine_reference as er  # noqa: E402

REFERENCES = json.loads(er.GOLDEN.read_text())
STORED = {case["name"]: case for case in REFERENCES["cases"]}
PROMPTS = [(case, length) for case in er.CASES for length in case.prompt_lengths]
NAMES = [f"{case.name}-{length}" for case, length in PROMPTS]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {case.name: er.make_model(case, folder) for case in er.CASES}


@pytest.mark.parametrize("case", er.CASES, ids=lambda case: case.name)
def test_make_model_writes_the_bytes_the_references_were_made_from(models, case):
    manifest = json.loads((models[case.name] / "manifest.json").read_text())
    assert manifest["files"]["model.safetensors"] == STORED[case.name]["weights_sha256"]


@pytest.mark.skipif(er.kvengine() is None, reason="kvengine is not built")
@pytest.mark.parametrize("kv_dtype", sorted(er.ERROR_LIMIT))
@pytest.mark.parametrize(("case", "length"), PROMPTS, ids=NAMES)
def test_logits_and_greedy_tokens_are_those_of_transformers(models, tmp_path, case, length, kv_dtype):
    stored = next(prompt for prompt in STORED[case.name]["prompts"] if prompt["length"] == length)
    prompt_ids = er.prompt(length, case.vocab)
    ids, logits, report = er.generate(models[case.name], prompt_ids, er.OUTPUT_TOKENS, tmp_path, kv_dtype)
    assert report["prompt_tokens"] == length

    limit = er.ERROR_LIMIT[kv_dtype] * stored["bf16_rms"]
    stride = REFERENCES["logit_stride"]
    assert er.rms(logits[0][::stride] - np.array(stored["first_logits"])) <= limit

    # A step whose two best tokens are closer than rounding may go either way; what follows is then another text.
    sure = [margin > 8 * limit for margin in stored["margins"]]
    certain = sure.index(False) if False in sure else len(sure)
    assert ids[:certain] == stored["output_ids"][:certain]
    if ids == stored["output_ids"]:
        assert er.rms(logits[-1][::stride] - np.array(stored["last_logits"])) <= limit


@pytest.mark.skipif(er.kvengine() is None, reason="kvengine is not built")
@pytest.mark.parametrize("name", ["qwen3-moe", "deepseek-v2", "qwen3-yarn"])
def test_the_cuda_back_end_refuses_what_it_does_not_compute(models, name):
    command = [str(er.kvengine()), "generate", "--model", str(models[name]), "--prompt", "x", "--device", "cuda", "--block-tokens", "64"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    if "built without CUDA" in done.stderr:
        pytest.skip("kvengine is built without CUDA")
    assert "computes no experts, latent attention or yarn" in done.stderr
