"""A small byte-level BPE tokenizer.json for random models: 256 bytes, some merges, the ChatML special tokens."""

from collections import Counter

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEXT = (
    "the store keeps what the model computed once and gives it back when the same words come again so that nobody waits for the same "
    "work twice and the first word of an answer comes sooner while every page that is read is checked before it is used "
)
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"


def alphabet():
    """Byte -> character of the GPT-2 byte alphabet."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {**{byte: chr(byte) for byte in own}, **{byte: chr(0x100 + i) for i, byte in enumerate(others)}}


def learn_merges(count):
    """The most frequent pairs of _TEXT; ties go to the pair that sorts first."""
    words = Counter("Ġ" + word for word in _TEXT.split())
    splits = {word: list(word) for word in words}
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for word, parts in splits.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in splits.items():
            at = 0
            while at + 1 < len(parts):
                if (parts[at], parts[at + 1]) == best:
                    parts[at : at + 2] = ["".join(best)]
                at += 1
    return merges


def tokenizer_json(family, vocab_size):
    """Needs vocab_size >= 259. Every id below vocab_size has a token; those that text never becomes are <unused..>."""
    merges = learn_merges(min(128, vocab_size - 256 - len(_SPECIAL)))
    tokens = [*(character for _, character in sorted(alphabet().items())), *("".join(pair) for pair in merges)]
    tokens += [f"<unused{i}>" for i in range(vocab_size - len(_SPECIAL) - len(tokens))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    digits = r"\p{N}|" if family.startswith("qwen") else r"\p{N}{1,3}|"
    split = {"type": "Split", "pattern": {"Regex": _HEAD + digits + _TAIL}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(tokens) + i, "content": text, **flags} for i, text in enumerate(_SPECIAL)],
        "normalizer": {"type": "NFC"} if family.startswith("qwen") else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
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
            "merges": [" ".join(pair) for pair in merges],
        },
    }
