"""tokenizer.json of the vocabularies that OpenAI published and others use: o200k (gpt-oss, Phi-4-mini) and cl100k (Phi-4).
Their tokens come with the package bpe-openai; how transformers writes them is its TikTokenConverter's way."""

import functools

from bpe_openai import registry

# As model folders have it; the package has a faster form of it that finds the same words.
CL100K_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Those of gpt-oss that have names; the others are reserved.
HARMONY = {199998: "startoftext", 199999: "endoftext", 200002: "return", 200003: "constrain", 200005: "channel",
           200006: "start", 200007: "end", 200008: "message", 200012: "call", 200018: "endofprompt"}


def bytes_as_characters():
    """GPT-2's: bytes that print are themselves, the others follow from U+0100 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in prints]
    return {**{byte: chr(byte) for byte in prints}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


def merges_of(ranks):
    """Every pair of tokens that makes a token, those of earlier tokens first."""
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        yield from sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


@functools.cache
def tokenizer_json(encoding):
    published = getattr(registry, encoding)()
    characters, ranks = bytes_as_characters(), published["mergeable_ranks"]
    text = {token: "".join(characters[byte] for byte in token) for token in ranks}
    if encoding == "o200k_base":
        words = published["pat_str"]
        special = {f"<|{HARMONY.get(id, f'reserved_{id}')}|>": id for id in range(199998, 200019)}
    else:
        words, special = CL100K_WORDS, {"<|dummy_0|>": 100256, **published["special_tokens"]}  # the first as Phi-4 has it
        del special["<|endofprompt|>"]  # which does not follow the others
    return {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False} for name, id in special.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {text[token]: id for token, id in ranks.items()},
                  "merges": [f"{text[a]} {text[b]}" for a, b in merges_of(ranks)]},
    }  # fmt: skip
