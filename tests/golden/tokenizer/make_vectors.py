#!/usr/bin/env python3
"""Makes base.json (a small byte-level BPE) and vectors.json (what the Hugging Face `tokenizers` library does with it).

Needs `pip install tokenizers` (0.23.3 made the stored files). Run it only to add cases: the stored vectors are the reference.
"""

import copy
import json
import random
import unicodedata
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
TEXT = Path("/usr/share/common-licenses/GPL-2").read_text()
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|>x"]


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    accents = "café naïve über 한글 中文 नमस्ते e\u0301 12 345 don't DON'T   \n\n\t " * 20
    tokenizer.train_from_iterator([TEXT, accents], trainer)
    base = json.loads(tokenizer.to_str())
    size = len(base["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    base["added_tokens"] = [{"id": size + i, "content": s, "special": True, **flags} for i, s in enumerate(SPECIAL)]
    base["added_tokens"].append({"id": size + 4, "content": "caf\u00e9 <t>", "special": False, **flags, "normalized": True})
    base["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return base


def split(pattern, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": "Isolated", "invert": False}


def variants(base):
    """name -> fields of tokenizer.json to replace."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {**byte_level, "use_regex": False}

    def sequence(*steps):
        return {"type": "Sequence", "pretokenizers": list(steps)}

    llama3 = f"{CONTRACTIONS}|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|\\p{{N}}{{1,3}}|{REST}"
    qwen2 = f"{CONTRACTIONS}|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|\\p{{N}}|{REST}"
    start = base["added_tokens"][0]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": start["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {start["content"]: {"id": start["content"], "ids": [start["id"]], "tokens": [start["content"]]}},
    }
    some_merges_missing = copy.deepcopy(base["model"])
    some_merges_missing["ignore_merges"] = True
    some_merges_missing["merges"] = some_merges_missing["merges"][:150]
    lacking = copy.deepcopy(base["model"])
    lacking["vocab"]["\u4e00"] = lacking["vocab"].pop("\u0104")  # no token for byte 4
    return {
        "gpt2": {"pre_tokenizer": byte_level},
        "smollm": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, byte_level)},
        "digit runs": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": False}, byte_level)},
        "literal split": {"pre_tokenizer": sequence(split("e.", "String"), plain)},
        "llama3": {
            "pre_tokenizer": sequence(split(llama3), plain),
            "model": some_merges_missing,
            "post_processor": {"type": "Sequence", "processors": [plain, template]},
        },
        "qwen2": {"pre_tokenizer": sequence(split(qwen2), plain), "normalizer": {"type": "NFC"}, "post_processor": plain},
        "lacking byte": {"pre_tokenizer": byte_level, "model": lacking},
    }


def texts():
    draw = random.Random(7)
    letters = "abst'SmdrReLV 1234.,!<>|_\n\r\t\u00a0\u00e9\u0301\u0308\u212b\ud55c\u1112\u1161\u11ab\u0663\u00bd\u017f\u180e\u2028\u3000\U0001f600"
    fixed = [
        "", " ", "a", "Hello, world!", "  two  spaces   three\n\n\n four \t", "x\r\n\r\n  y\r", "12345 67 8", "\u0663\u0664 \u00bd \u216b 1\u00b2",
        "don't I'LL we'Re 'S \u0027\u017f it'x", "caf\u00e9 cafe\u0301 \u212b \u1112\u1161\u11ab \ud55c\uae00 \u0958 a\u0327\u0301", "\u4e2d\u6587 \u0928\u092e\u0938\u094d\u0924\u0947",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001d7ce", "\u180e \u2003x\u2028y\u3000z\u0085w\u00a0",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>x <|im_en|> <|endoftext|>", "caf\u00e9 <t> cafe\u0301 <t>", "a\x04b\x00\x7f c", "a" * 50, " " * 30 + "x", "\n" * 19,
        "the the the theththe", TEXT[:500],
    ]
    mixed = ["".join(draw.choice(letters) for _ in range(draw.choice([5, 20, 60]))) for _ in range(16)]
    noise = [bytes(draw.randrange(256) for _ in range(30)).decode("utf-8", errors="replace") for _ in range(5)]
    wide = []
    while len(wide) < 5:
        drawn = (chr(draw.randrange(0x20000)) for _ in range(20))
        wide.append("".join(c for c in drawn if unicodedata.category(c) not in ("Cs", "Cn")))
    return fixed + mixed + noise + wide


def main():
    base = train()
    result = []
    for name, replaced in variants(base).items():
        tokenizer = Tokenizer.from_str(json.dumps({**base, **replaced}))
        cases = []
        for text in texts():
            ids = tokenizer.encode(text).ids
            decoded = tokenizer.decode(ids, skip_special_tokens=False)
            cases.append([text, ids] if decoded == text else [text, ids, decoded])
        if "model" in replaced:  # stored as the difference only
            model = replaced.pop("model")
            replaced["model_patch"] = {
                "ignore_merges": model["ignore_merges"],
                "merges_kept": len(model["merges"]),
                "lacks_byte_4": "\u0104" not in model["vocab"],
            }
        result.append({"name": name, "replaced": replaced, "cases": cases})
    dump = {"ensure_ascii": True, "separators": (",", ":")}
    (HERE / "base.json").write_text(json.dumps(base, **dump) + "\n")
    lines = [json.dumps(variant, **dump) for variant in result]
    (HERE / "vectors.json").write_text("[" + ",\n".join(lines) + "]\n")


if __name__ == "__main__":
    main()
