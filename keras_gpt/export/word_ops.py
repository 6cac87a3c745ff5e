"""Text cut into words by TensorFlow operations, as byte-level tokenizers cut it.

The regular expressions of GPT-2, Llama 3 and Qwen2 are applied by RE2, with two
changes. It can't look ahead: spaces are cut before. And which characters are letters,
numbers and spaces is asked from the `tokenizers` library: versions of Unicode differ.
"""

# Axes: b row of the batch, w word of all rows

import functools
import json
import re
from typing import Any

import tensorflow as tf

from keras_gpt.tokenizers.rules import GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS

NOTHING = -1  # for a byte that the vocabulary hasn't
_CUT = b"\xff"  # which no UTF-8 has, and no expression matches


class ByteWords(tf.Module):
    """Cuts text into words, and writes their bytes as characters that print.

    Args:
        pre_tokenizer: The part of `tokenizer.json`.
        alphabet: The code point that stands for each byte, `NOTHING` for a byte that
            the vocabulary hasn't: the library leaves it out before it merges.
    """

    def __init__(self, pre_tokenizer: dict[str, Any] | None, alphabet: list[int]):
        super().__init__()
        self.has_gaps = NOTHING in alphabet
        pattern, digits = _word_rule(pre_tokenizer)
        # The last space before something else isn't in the word of those before it,
        # unless it is a newline where newlines end a word
        space = r"\s" if pattern == GPT2_WORDS else r"\h"
        words = pattern.replace(r"|\s+(?!\S)", "")
        cuts = {
            rf"(\s)({space}[^\s])": rb"\1" + _CUT + rb"\2",
            f"({words})": rb"\1" + _CUT,
        }
        if digits is not None:
            cuts = {f"({digits})": _CUT + rb"\1" + _CUT, **cuts}
        self.cuts = [(_for_re2(cut), rewritten) for cut, rewritten in cuts.items()]
        with tf.device("CPU:0"):
            self.alphabet = tf.constant(alphabet, tf.int32)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Turn valid UTF-8 `(b,)` into words `(b, None)`, of which some are empty."""
        for pattern, rewritten in self.cuts:
            text = tf.strings.regex_replace(text, pattern, rewritten)
        words = tf.strings.split(text, _CUT)
        return words.with_values(self._symbols(words.values))

    def _symbols(self, words):
        """Words `(w,)` with the character that stands for each byte."""
        word_bytes = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        symbols = tf.RaggedTensor.from_row_lengths(
            tf.gather(self.alphabet, tf.cast(word_bytes, tf.int32)),
            tf.strings.length(words),
            validate=False,
        )
        if self.has_gaps:
            symbols = tf.ragged.boolean_mask(symbols, symbols != NOTHING)
        return tf.strings.unicode_encode(symbols, "UTF-8")


def check_supported(is_supported: bool, name: str, value: Any, supported: str) -> None:
    """Raise a `ValueError` about a part of `tokenizer.json` unless it is supported."""
    if not is_supported:
        raise ValueError(
            f"The tokenizer can't be exported because of its {name}. Received: "
            f"{json.dumps(value, ensure_ascii=False)[:300]}. Supported: {supported}."
        )


@functools.cache
def _ranges():
    """By name, the characters of a class as RE2 reads them within brackets."""
    from tokenizers import Regex, pre_tokenizers

    # no surrogates, nor the planes of Unicode that have no letters or numbers
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000)]))
    cuts = {
        name: pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
        for name, pattern in {
            r"\p{L}": r"\p{L}+",
            r"\p{N}": r"\p{N}+",
            r"\s": r"\s+",
            r"\h": r"[^\S\r\n]+",
        }.items()
    }
    found = {name: cut.pre_tokenize_str(text) for name, cut in cuts.items()}
    each, runs = (pre_tokenizers.Digits(individual_digits=i) for i in (True, False))
    found[r"\d"] = [
        (piece, place)
        for piece, place in runs.pre_tokenize_str(text)
        if len(each.pre_tokenize_str(2 * piece[0])) == 2
    ]
    return {
        name: "".join(
            rf"\x{{{ord(piece[0]):x}}}-\x{{{ord(piece[-1]):x}}}" for piece, _ in pieces
        )
        for name, pieces in found.items()
    }


def _for_re2(pattern):
    """An expression with the characters of each class listed in brackets."""
    pattern = re.sub(r"(\[.*?\])|(\\p{.}|\\[shd])", r"\1[\2]", pattern)
    pattern = pattern.replace("[]", "")
    for name, ranges in _ranges().items():
        pattern = pattern.replace(name, ranges)
    return pattern


def _word_rule(pre_tokenizer):
    """The expression for words, and that for digits that are cut out before."""
    steps = list((pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer]))
    digits = None
    if steps and steps[0] and steps[0]["type"] == "Digits":
        digits = r"\d" if steps.pop(0)["individual_digits"] else r"\d+"
    pattern = GPT2_WORDS
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if len(steps) == 2 and steps[0]["type"] == "Split":
        split = steps.pop(0)
        level["use_regex"] = False
        is_known = split["behavior"] == "Isolated" and not split["invert"]
        pattern = split["pattern"].get("Regex") if is_known else None
    is_level = len(steps) == 1 and steps[0] and level.items() <= steps[0].items()
    check_supported(
        is_level and pattern in (GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS),
        "pre_tokenizer",
        pre_tokenizer,
        "ByteLevel without a space in front (GPT-2's), Digits before it (SmolLM2's), "
        "and Split by Llama 3's or Qwen2's regular expression before it",
    )
    return pattern, digits
