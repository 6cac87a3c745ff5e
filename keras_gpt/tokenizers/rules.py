"""The rules that cut text into words before byte-level pairs are merged.

Each is the part `pre_tokenizer` of a `tokenizer.json`, under the name that GGUF files
have for it.
"""

from typing import Any

GPT2_WORDS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace("{1,3}", "")
_TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(use_regex: bool) -> dict[str, Any]:
    """Turn text into characters for its bytes, cut by GPT-2's expression or not."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _cut(*patterns: str) -> dict[str, Any]:
    """Cut by each regular expression in turn, then into bytes."""
    cuts = [
        {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*cuts, byte_level(False)]}


_GPT2 = byte_level(True)
_SMOLLM = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2],
}
_LLAMA3 = _cut(LLAMA3_WORDS)
_QWEN2 = _cut(QWEN2_WORDS)
# By `tokenizer.ggml.pre`
PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    "smollm": _SMOLLM,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _cut(_TEKKEN_WORDS),
    # what llama.cpp falls back to for models that it doesn't know
    "default": _cut(r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
# Llama 3's and Mistral's: a word that is a token is not merged, and BOS is the default
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")


def safe_cut(text: str, start: int, stop: int) -> int | None:
    """Where a text can be cut so that its tokens stay the same, late before `stop`.

    After a newline that stands alone, or else before a space that stands alone: none
    of these rules joins across either.

    Args:
        text: The text.
        start: Where the part to cut off begins.
        stop: Below which place to look, from the middle of the part on. The text goes
            on there.

    Returns:
        The place, or `None` where there is none.
    """
    for mark, length in (("\n", 1), (" ", 0)):
        least = (start + stop) // 2
        position = text.rfind(mark, least, stop)
        while position > start:
            if not text[position - 1].isspace() and not text[position + 1].isspace():
                return position + length
            position = text.rfind(mark, least, position)
    return None
