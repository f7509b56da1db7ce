"""Hugging Face transformers as the reference: greedy output and the logits of each step."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, DynamicCache

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(folder, dtype):
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], attn_implementation="eager")
    return model.eval()


def logits_along(model, prompt_ids, output_ids):
    """Logits [len(output_ids), vocab] of the last prompt token and of each output token but the last, in float32."""
    with torch.no_grad():
        out = model(torch.tensor([[*prompt_ids, *output_ids[:-1]]]), logits_to_keep=len(output_ids))
    return out.logits[0].float().numpy()


def greedy(model, prompt_ids, output_tokens):
    """(output ids, their logits [output_tokens, vocab]); never stops early."""
    cache, inputs, ids, rows = DynamicCache(config=model.config), torch.tensor([prompt_ids]), [], []
    with torch.no_grad():
        for _ in range(output_tokens):
            logits = model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float()
            rows.append(logits)
            ids.append(int(logits.argmax()))
            inputs = torch.tensor([[ids[-1]]])
    return ids, torch.stack(rows).numpy()
