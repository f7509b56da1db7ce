#!/usr/bin/env python3
"""Writes a model of Llama-3-8B's shapes with random weights, and times cold prefill of transformers (bf16, sdpa) on it.

    python3 tests/gpu/transformers_prefill.py MODEL_DIR [--tokens 8192 16384 ...]

The folder is for `engine_cuda_bench` in the same run: weights are drawn on the device, which takes seconds for 16 GB.
Medians of 3 after one warm-up (from 40,000 tokens on: of 1), host clock around a prefill that ends with the last token's arg max on the host.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


def make_model():
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(LlamaConfig(**CONFIG), attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    return model.eval()


def prefill_ms(model, tokens):
    ids = torch.randint(0, CONFIG["vocab_size"], (1, tokens), device="cuda")
    times = []
    with torch.no_grad():
        for _ in range(4 if tokens < 40000 else 2):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            model(ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax().item()
            times.append((time.perf_counter() - begin) * 1e3)
    return sorted(times[1:])[len(times[1:]) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--tokens", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    arguments.model_dir.mkdir(parents=True, exist_ok=True)
    model = make_model()
    (arguments.model_dir / "config.json").write_text(json.dumps(CONFIG))
    save_file({name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}, arguments.model_dir / "model.safetensors")
    for tokens in arguments.tokens:
        print(f"transformers cold {tokens}: {prefill_ms(model, tokens):.1f} ms", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
