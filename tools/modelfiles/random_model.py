"""Random-weight models of any shape: the same bytes from the same seed, on any machine and numpy version.

Element i of a tensor is SplitMix64 number i from a start that SHA-256 makes of seed and tensor name, as a uniform number with the mean and
spread below. Only integer arithmetic and exact float operations are used.
"""

import hashlib

import numpy as np

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 1 << 20


def uniform(seed, name, count):
    """`count` float32 numbers, uniform in [-1, 1), multiples of 2^-23."""
    start = np.uint64(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little"))
    out = np.empty(count, np.float32)
    with np.errstate(over="ignore"):
        for begin in range(0, count, _CHUNK):
            end = min(begin + _CHUNK, count)
            z = start + np.arange(begin + 1, end + 1, dtype=np.uint64) * _GOLDEN
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
            out[begin:end] = (z >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    return out


def _swiglu(prefix, hidden, inner):
    return {
        prefix + "gate_proj.weight": (inner, hidden),
        prefix + "up_proj.weight": (inner, hidden),
        prefix + "down_proj.weight": (hidden, inner),
    }


def _attention(prefix, config):
    hidden, dim = config["hidden_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes = {}
    for part, rows in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
        shapes[f"{prefix}{part}.weight"] = (rows, hidden)
        if config["model_type"] == "qwen2":
            shapes[f"{prefix}{part}.bias"] = (rows,)
    if config["model_type"].startswith("qwen3"):
        shapes[prefix + "q_norm.weight"] = (dim,)
        shapes[prefix + "k_norm.weight"] = (dim,)
    shapes[prefix + "o_proj.weight"] = (hidden, query)
    return shapes


def _latent_attention(prefix, config):
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    return {
        prefix + "q_proj.weight": (heads * (nope + rope), hidden),
        prefix + "kv_a_proj_with_mqa.weight": (rank + rope, hidden),
        prefix + "kv_a_layernorm.weight": (rank,),
        prefix + "kv_b_proj.weight": (heads * (nope + value), rank),
        prefix + "o_proj.weight": (hidden, heads * value),
    }


def _experts(prefix, config):
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    count = config.get("num_experts") or config["n_routed_experts"]
    shapes = {prefix + "gate.weight": (count, hidden)}
    for expert in range(count):
        shapes |= _swiglu(f"{prefix}experts.{expert}.", hidden, inner)
    if "n_shared_experts" in config:
        shapes |= _swiglu(prefix + "shared_experts.", hidden, inner * config["n_shared_experts"])
    return shapes


def tensor_shapes(config):
    """Hugging Face names and shapes of all weights, in the order they are written."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        attention = _latent_attention if "kv_lora_rank" in config else _attention
        shapes |= attention(prefix + "self_attn.", config)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        has_experts = "moe_intermediate_size" in config and layer >= config.get("first_k_dense_replace", 0)
        shapes |= _experts(prefix + "mlp.", config) if has_experts else _swiglu(prefix + "mlp.", hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def tensor(seed, name, shape):
    """Spreads that keep activations near 1 and make attention and logits uneven, so that mistakes in either are seen.

    A uniform number in [-1, 1) has a standard deviation of 3^-1/2. Rows of fan-in n get a gain g: deviation g * n^-1/2.
    """
    values = uniform(seed, name, int(np.prod(shape)))
    if name.endswith("norm.weight"):
        return (np.float32(1) + np.float32(0.5) * values).reshape(shape)
    if name.endswith(".bias"):
        return (np.float32(0.75) * values).reshape(shape)
    gain = 1.5 if ".q_proj." in name or ".k_proj." in name else 2.0 if "lm_head" in name or "embed" in name else 1.0
    return (values * np.float32(gain * (3.0 / shape[-1]) ** 0.5)).reshape(shape)
