#!/usr/bin/env python3
"""Logits of `kvengine generate --device cuda` against Hugging Face transformers on the same weights and tokens.

    python3 tests/gpu/logits_gate.py KVENGINE MODEL_DIR...

For each model (tools/make_model --tokenizer) and prompt length: kvengine continues a random prompt by 32 tokens; transformers computes the
logits of all of them in float32 (eager) and in bf16 (sdpa). Fails if kvengine's RMS error against float32 is above 1.25 times that of bf16.
Needs torch with a CUDA device, and transformers.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

PROMPTS = (1, 63, 700, 3000)
OUTPUT_TOKENS = 32
RATIO_MAX = 1.25


def run_kvengine(kvengine, model_dir, ids, folder):
    """(output ids, logits of every step, float64)"""
    (folder / "ids").write_text(" ".join(map(str, ids)))
    command = [kvengine, "generate", "--model", model_dir, "--device", "cuda", "--prompt-ids", folder / "ids", "--block-tokens", "256"]
    command += ["--max-tokens", str(OUTPUT_TOKENS), "--logits-out", folder / "logits", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    output = json.loads(done.stdout)["output_ids"]
    logits = torch.frombuffer(bytearray((folder / "logits").read_bytes()), dtype=torch.float32)
    return output, logits.reshape(len(output), -1).double().cuda()


def relative_rms(logits, reference):
    return ((logits - reference).pow(2).mean().sqrt() / reference.pow(2).mean().sqrt()).item()


def compare(kvengine, model_dir):
    """The largest ratio of errors over all prompt lengths."""
    torch.backends.cuda.matmul.allow_tf32 = False
    vocabulary = json.loads((Path(model_dir) / "config.json").read_text())["vocab_size"]
    exact = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").cuda().eval()
    rounded = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16, attn_implementation="sdpa").cuda().eval()
    worst = 0.0
    for length in PROMPTS:
        ids = random.Random(length).choices(range(vocabulary), k=length)
        with tempfile.TemporaryDirectory() as folder:
            output, ours = run_kvengine(kvengine, model_dir, ids, Path(folder))
        tokens = torch.tensor([ids + output[:-1]], device="cuda")
        with torch.no_grad():
            reference = exact(tokens).logits[0, length - 1 :].double()
            theirs = rounded(tokens).logits[0, length - 1 :].double()
        our_error, their_error = relative_rms(ours, reference), relative_rms(theirs, reference)
        print(f"{Path(model_dir).name}, prompt {length}: RMS error {our_error:.3e}, transformers bf16 {their_error:.3e}, ratio {our_error / their_error:.3f}", flush=True)
        if not our_error / their_error <= worst:  # NaN counts as worse
            worst = our_error / their_error
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kvengine")
    parser.add_argument("models", nargs="+", metavar="MODEL_DIR")
    arguments = parser.parse_args()
    ratios = [compare(arguments.kvengine, model) for model in arguments.models]
    passed = all(ratio <= RATIO_MAX for ratio in ratios)
    print(f"largest ratio {max(ratios):.3f}, at most {RATIO_MAX} wanted: {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
