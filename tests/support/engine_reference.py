"""What the engine is compared on with Hugging Face transformers: models, prompts, a way to run kvengine, measures of error."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "engine" / "references.json"
OUTPUT_TOKENS = 6
# Our RMS error against fp32 is at most this much of that of transformers in bf16, by the dtype of our KV pages. With f32 pages all of our
# arithmetic is fp32: measured below 0.001, where a wrong rms_norm_eps or rope factor gives more than 0.1. With bf16 pages: measured 0.13 to 0.55.
ERROR_LIMIT = {"f32": 0.02, "bf16": 1.25}


@dataclass(frozen=True)
class Case:
    """A model of tools/make_model and the lengths of the prompts it is asked."""

    name: str
    arguments: tuple
    prompt_lengths: tuple
    vocab: int = 512


def _shape(family, *more):
    base = ("--layers", "4", "--hidden", "128", "--heads", "4", "--kv-heads", "2", "--vocab", "512")
    return ("--family", family, *base, *more)


# Lengths lie around block boundaries (16, 64, 256) and, with rope scaling, beyond the original 256 positions.
CASES = (
    Case("llama", _shape("llama", "--seed", "1"), (1, 15, 16, 17, 64, 65, 257)),
    Case("llama-tied", _shape("llama", "--tie", "--seed", "2"), (33,)),
    Case("llama3-scaled", _shape("llama", "--rope-scaling", "llama3:8:256", "--seed", "3"), (63, 255, 256, 257, 700)),
    Case("linear-scaled", _shape("llama", "--rope-scaling", "linear:4", "--seed", "4"), (300,)),
    Case("mistral-f16", _shape("mistral", "--dtype", "F16", "--seed", "5"), (100,)),
    Case("qwen2", _shape("qwen2", "--rope-theta", "1000000", "--seed", "6"), (1, 17, 257)),
    Case("qwen3-wide-heads", _shape("qwen3", "--head-dim", "64", "--rope-theta", "1000000", "--seed", "7"), (1, 17, 257)),
    Case("qwen3-yarn", _shape("qwen3", "--rope-scaling", "yarn:4:256", "--seed", "10"), (255, 300)),
    Case("qwen3-moe", _shape("qwen3_moe", "--head-dim", "64", "--experts", "16", "--experts-per-token", "4", "--expert-intermediate", "96",
                             "--norm-topk-prob", "--seed", "11"), (1, 15, 16, 17, 64, 65, 257)),
    Case("qwen3-moe-plain", _shape("qwen3_moe", "--experts", "5", "--experts-per-token", "5", "--seed", "12"), (33,)),
    Case("deepseek-v2", _shape("deepseek_v2", "--experts", "16", "--experts-per-token", "4", "--expert-intermediate", "96", "--rope-scaling",
                               "yarn:4:256:0.707:0.707", "--seed", "13"), (1, 15, 16, 17, 64, 65, 255, 256, 257, 700)),
    Case("deepseek-v2-odd", _shape("deepseek_v2", "--kv-rank", "80", "--nope-dim", "40", "--rope-dim", "16", "--value-dim", "24",
                                   "--dense-layers", "0", "--shared-experts", "1", "--routed-scaling", "2.5", "--rope-scaling",
                                   "yarn:8:64:1:0.5", "--seed", "14"), (100,)),
    Case("odd-shape", ("--family", "llama", "--layers", "3", "--hidden", "120", "--intermediate", "200", "--heads", "6",
                       "--kv-heads", "2", "--head-dim", "48", "--vocab", "307", "--seed", "8"), (70,), vocab=307),
)


def prompt(length, vocab):
    """Token ids without a pattern, the same everywhere (Knuth's multiplicative hash)."""
    return [(i * 2654435761 >> 7) % vocab for i in range(1, length + 1)]


def make_model(case, folder):
    out = Path(folder) / case.name
    command = [sys.executable, str(ROOT / "tools" / "make_model"), *case.arguments, "--tokenizer", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    return out


def kvengine():
    """The program under test; None if it is not built."""
    folder = Path(os.environ.get("KVSTORE_BIN_DIR", ROOT / "build" / "release" / "bin"))
    return folder / "kvengine" if (folder / "kvengine").exists() else None


def generate(model, prompt_ids, output_tokens, scratch, kv_dtype="bf16"):
    """Runs kvengine without a store; returns (output ids, logits [tokens, vocab] that each was chosen from, the JSON it printed)."""
    ids_file, logits_file = Path(scratch) / "prompt.ids", Path(scratch) / "logits.f32"
    ids_file.write_text("\n".join(map(str, prompt_ids)) + "\n")
    command = [str(kvengine()), "generate", "--model", str(model), "--prompt-ids", str(ids_file), "--max-tokens",
               str(output_tokens), "--no-store", "--json", "--logits-out", str(logits_file), "--kv-dtype", kv_dtype]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1800)
    if done.returncode != 0:
        raise AssertionError(f"kvengine failed with {done.returncode}: {done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    vocab = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    logits = np.fromfile(logits_file, "<f4").reshape(-1, vocab)
    return report["output_ids"], logits, report


def rms(values):
    return float(np.sqrt(np.mean(np.square(np.asarray(values, np.float64)))))


def first_difference(ours, reference, reference_logits, tolerance):
    """Index of the first output token that differs although the reference was sure; None if there is none.

    Two tokens whose reference logits are closer than `tolerance` are a tie that rounding may decide; after one, outputs may part.
    """
    for index, (mine, theirs) in enumerate(zip(ours, reference, strict=True)):
        if mine != theirs:
            gap = reference_logits[index][theirs] - reference_logits[index][mine]
            return index if gap > tolerance else None
    return None
