"""Text cut into words by TensorFlow operations, as byte-level tokenizers cut it.

The regular expressions of GPT-2, Llama 3 and Qwen2 look only at the kinds of characters
nearby: each rule here says where words begin, for all characters at once. Which
character is of which kind is asked from the `tokenizers` library.
"""

# Axes: b row of the batch, w word of all rows, c character of all rows (one after
# another)

import functools
import json
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_gpt.tokenizers.rules import GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS

# How many digits may be one word; in GPT-2's all of a row
NUM_DIGITS = {GPT2_WORDS: None, LLAMA3_WORDS: 3, QWEN2_WORDS: 1}
OTHER, LETTER, NUMBER, SPACE = range(4)
NOTHING = -1  # before the first character of a part, and after its last


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
        self.pattern, self.digits = _word_rule(pre_tokenizer)
        bounds, kinds, is_digit, letters = _character_table()
        with tf.device("CPU:0"):
            self.alphabet = tf.constant(alphabet, tf.int32)
            self.bounds = tf.constant(bounds, tf.int32)
            self.kinds = tf.constant(kinds, tf.int32)
            self.is_digit = tf.constant(is_digit, tf.bool)
            self.letters = tf.constant(letters, tf.int32)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Turn valid UTF-8 `(b,)` into words `(b, None)`."""
        rows = tf.strings.unicode_decode(text, "UTF-8")
        codes = rows.flat_values  # (c,)
        starts = self._starts(codes, rows.value_rowids())
        # where each character begins in the bytes, and the words that begin with it
        num_bytes = 1 + sum(
            tf.cast(codes >= limit, tf.int64) for limit in (0x80, 0x800, 0x10000)
        )
        ends = tf.cumsum(num_bytes)
        firsts = tf.boolean_mask(ends - num_bytes, starts)
        text_bytes = tf.io.decode_raw(tf.strings.reduce_join(text), tf.uint8)
        splits = tf.concat([firsts, [tf.size(text_bytes, tf.int64)]], axis=0)
        symbols = tf.gather(self.alphabet, tf.cast(text_bytes, tf.int32))
        if self.has_gaps:
            is_known = symbols != NOTHING
            symbols = tf.boolean_mask(symbols, is_known)
            num_known = tf.concat([[0], tf.cumsum(tf.cast(is_known, tf.int64))], axis=0)
            splits = tf.gather(num_known, splits)
        words = tf.strings.unicode_encode(
            tf.RaggedTensor.from_row_splits(symbols, splits, validate=False), "UTF-8"
        )  # (w,)
        num_words = tf.concat([[0], tf.cumsum(tf.cast(starts, tf.int64))], axis=0)
        return tf.RaggedTensor.from_row_splits(
            words, tf.gather(num_words, rows.row_splits), validate=False
        )

    def _starts(self, codes, row_ids):
        """Whether a word begins at each character."""
        places = tf.searchsorted(self.bounds, codes, side="right") - 1
        begins = row_ids != _previous(row_ids, NOTHING)
        if self.digits is not None:  # they are cut out before the rule is applied
            is_digit = tf.gather(self.is_digit, places)
            before = _previous(is_digit, False)
            is_cut = is_digit | before if self.digits else is_digit != before
            begins |= is_cut
        characters = _Characters(codes, tf.gather(self.kinds, places), begins)
        if self.pattern == GPT2_WORDS:
            starts = _gpt2_starts(characters)
            letters = codes
        else:
            starts = _llama3_starts(characters, NUM_DIGITS[self.pattern])
            letters = tf.gather(self.letters, places)
        return _cut_contractions(characters, starts, letters)


def check_supported(is_supported: bool, name: str, value: Any, supported: str) -> None:
    """Raise a `ValueError` about a part of `tokenizer.json` unless it is supported."""
    if not is_supported:
        raise ValueError(
            f"The tokenizer can't be exported because of its {name}. Received: "
            f"{json.dumps(value, ensure_ascii=False)[:300]}. Supported: {supported}."
        )


class _Characters(NamedTuple):
    """Code points, kinds, and whether a part that is cut on its own begins there."""

    codes: tf.Tensor  # (c,)
    kinds: tf.Tensor  # (c,)
    begins: tf.Tensor  # (c,)

    def before(self, values):
        """What the character before has, `NOTHING` at the begin of a part."""
        return tf.where(self.begins, NOTHING, _previous(values, NOTHING))

    def after(self, values):
        """What the character after has, `NOTHING` at the end of a part."""
        values = tf.where(self.begins, NOTHING, values)
        return tf.concat([values, [NOTHING]], axis=0)[1:]


def _previous(values, first):
    return tf.concat([[first], values], axis=0)[:-1]


def _gpt2_starts(characters):
    """Where words begin by GPT-2's expression, but for its contractions."""
    codes, kinds, _ = characters
    is_space = kinds == SPACE
    is_run = kinds != characters.before(kinds)  # a row of one kind begins
    after_space = characters.before(codes) == ord(" ")
    after = characters.after(kinds)
    # The last space before something else isn't in the word of those before it
    is_left = (after != SPACE) & (after != NOTHING)
    return tf.where(is_space, is_run | is_left, is_run & ~after_space)


def _llama3_starts(characters, num_digits):
    """Where words begin by Llama 3's expression, but for its contractions."""
    codes, kinds, begins = characters
    before, after = characters.before(kinds), characters.after(kinds)
    is_run = begins | (kinds != before)  # a row of one kind begins
    is_newline = (codes == ord("\n")) | (codes == ord("\r"))
    # first and last character of the row that each is in
    index = tf.range(tf.size(codes))
    run_ids = tf.cumsum(tf.cast(is_run, tf.int32)) - 1
    firsts = tf.boolean_mask(index, is_run)
    lasts = tf.concat([firsts, [tf.size(codes)]], axis=0)[1:] - 1
    first, last = tf.gather(firsts, run_ids), tf.gather(lasts, run_ids)
    # Others take a space before them, and newlines after them
    other = is_run & (characters.before(codes) != ord(" ")) & (kinds == OTHER)
    newlines = tf.cumsum(tf.cast(is_newline, tf.int32))
    before_first = tf.gather(newlines - tf.cast(is_newline, tf.int32), first)
    is_taken = (newlines - before_first == index - first + 1) & (
        tf.gather(before, first) == OTHER
    )
    # Spaces up to the last newline are a word
    after_newline = _previous(is_newline, False) & ~is_newline
    is_rest = after_newline & (newlines == tf.gather(newlines, last))
    # The last before something else isn't in the word of those before it
    is_left = (after != SPACE) & (after != NOTHING) & ~is_newline
    begins_spaces = is_run | _previous(is_taken & (kinds == SPACE), False)
    space = (begins_spaces | is_rest | is_left) & ~is_taken & (kinds == SPACE)
    # Letters take one space or one other before them, but no newline
    takes_space = (before == SPACE) & ~_previous(is_newline, False)
    takes_other = (before == OTHER) & _previous(other, False)
    letter = is_run & ~takes_space & ~takes_other & (kinds == LETTER)
    number = ((index - first) % num_digits == 0) & (kinds == NUMBER)
    return other | space | letter | number


def _cut_contractions(characters, starts, letters):
    """Let 's, 't, 'm, 'd, 're, 've and 'll be words where a word begins with them."""
    first = characters.after(letters)
    second = characters.after(first)

    def spells(name):
        is_first = first == ord(name[0])
        return is_first & (second == ord(name[1])) if name[1:] else is_first

    begins = starts & (characters.codes == ord("'"))
    short = begins & functools.reduce(tf.logical_or, map(spells, "stmd"))
    long = begins & functools.reduce(tf.logical_or, map(spells, ("re", "ve", "ll")))
    # not after the apostrophe, but after the letters
    starts &= ~_previous(short | long, False)
    short_end = _previous(_previous(short, False), False)
    long_end = _previous(_previous(_previous(long, False), False), False)
    return starts | short_end | long_end


@functools.cache
def _character_table():
    """Kinds of all characters, asked from the library: versions of Unicode differ.

    Returns:
        Where in the code points something changes, and from there on: the kind,
        whether it is a digit, and which letter it is in a contraction (or 0), where
        case is ignored.
    """
    from tokenizers.pre_tokenizers import Digits, Sequence

    codes = np.delete(np.arange(0x110000), np.s_[0xD800:0xE000])  # no surrogates
    kinds = {LETTER: r"\p{L}+", NUMBER: r"\p{N}+", SPACE: r"\s+"}
    letters = {ord(letter): f"(?i:{letter})" for letter in "stmdrevl"}
    cuts = [_split("|".join(patterns.values())) for patterns in (kinds, letters)]
    cut = Sequence([*cuts, Digits(individual_digits=False)])
    single = Digits(individual_digits=True)
    kind_of, letter_of = _matcher(kinds, OTHER), _matcher(letters, 0)
    table = np.zeros((3, len(codes)), np.int32)  # kind, is digit, letter
    for piece, (begin, end) in cut.pre_tokenize_str("".join(map(chr, codes))):
        first = piece[0]  # stands for all
        table[:, begin:end] = [
            [kind_of(first)],
            [len(single.pre_tokenize_str(2 * first)) == 2],
            [letter_of(first) if len(piece) == 1 else 0],
        ]
    changes = np.flatnonzero((table[:, 1:] != table[:, :-1]).any(axis=0)) + 1
    places = np.concatenate([[0], changes])
    return codes[places], *table[:, places]


def _split(pattern, behavior="isolated"):
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    return Split(Regex(pattern), behavior)


def _matcher(patterns, otherwise):
    """A function that gives the key of the pattern that matches a character."""
    cuts = {key: _split(pattern, "removed") for key, pattern in patterns.items()}

    def match(character):
        matches = (k for k, cut in cuts.items() if not cut.pre_tokenize_str(character))
        return next(matches, otherwise)

    return match


def _word_rule(pre_tokenizer):
    """The expression for words, and whether digits are cut out before, one by one."""
    steps = list((pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer]))
    digits = None
    if steps and steps[0] and steps[0]["type"] == "Digits":
        digits = steps.pop(0)["individual_digits"]
    pattern = GPT2_WORDS
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if len(steps) == 2 and steps[0]["type"] == "Split":
        split = steps.pop(0)
        pattern = split["pattern"].get("Regex")
        level["use_regex"] = False
        is_known = split["behavior"] == "Isolated" and not split["invert"]
        pattern = pattern if is_known else None
    is_level = len(steps) == 1 and steps[0] and level.items() <= steps[0].items()
    check_supported(
        is_level and pattern in NUM_DIGITS,
        "pre_tokenizer",
        pre_tokenizer,
        "ByteLevel without a space in front (GPT-2's), Digits before it (SmolLM2's), "
        "and Split by Llama 3's or Qwen2's regular expression before it",
    )
    return pattern, digits
