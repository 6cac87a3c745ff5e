"""Tokenizers as TensorFlow operations, for a SavedModel that takes and gives text.

Only operations of TensorFlow and tensorflow-text, which TensorFlow Serving has both.
Text that isn't UTF-8 is read as Python's `errors="replace"` reads it: `unicode_decode`
and `unicode_transcode` were compared with it on all short ill-formed sequences.
"""

# Axes: b row of the batch, t token in a row, c character of all rows one after another

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from keras_gpt.export.byte_pair_ops import BytePairEncoder
from keras_gpt.quiet import quiet_tensorflow
from keras_gpt.tokenizers import (
    BytePairTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)
from keras_gpt.tokenizers.base import SPACE_MARK
from keras_gpt.tokenizers.character import UNKNOWN

PADDING_ID = -1


def make_text_encoder(tokenizer: Tokenizer) -> tf.Module:
    """Make a module that turns text into token ids as a tokenizer does.

    Its `__call__(text)` takes strings `(b,)` and returns `token_ids`, int32 `(b, t)`
    padded with -1, and `lengths`, int32 `(b,)`. The ids are those of
    `tokenizer.encode(text)`: special tokens in the text are ordinary text, and no
    start ids are added. A SentencePiece model of type `"unigram"` may cut otherwise
    where several cuts are equally likely, as tensorflow-text has an older copy of the
    library.

    Args:
        tokenizer: Any of `keras_gpt.tokenizers`.

    Returns:
        The module, to be tracked as an attribute of what is saved.

    Raises:
        ValueError: The tokenizer has a part that TensorFlow operations can't do
            alike.

    Example:

    >>> from keras_gpt.export.text_ops import make_text_encoder
    >>> from keras_gpt.tokenizers import CharacterTokenizer
    >>> encode = make_text_encoder(CharacterTokenizer("abc"))
    >>> token_ids, lengths = encode(["cab", "b"])
    >>> token_ids.numpy().tolist(), lengths.numpy().tolist()
    ([[2, 0, 1], [1, -1, -1]], [3, 1])
    """
    if isinstance(tokenizer, CharacterTokenizer):
        encode = CharacterEncoder(tokenizer)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        encode = SentencePieceEncoder(tokenizer)
    elif isinstance(tokenizer, BytePairTokenizer):
        encode = BytePairEncoder(tokenizer)
    else:
        raise ValueError(
            "`tokenizer` must be a CharacterTokenizer, SentencePieceTokenizer or "
            f"BytePairTokenizer. Received: {tokenizer!r}."
        )
    return TextEncoder(encode)


class TextEncoder(tf.Module):
    """Text to padded token ids.

    Args:
        encode: A module that turns valid UTF-8 `(b,)` into ragged ids `(b, None)`.
    """

    def __init__(self, encode: tf.Module):
        super().__init__()
        self.encode = encode

    def __call__(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Encode each row; see `make_text_encoder`."""
        # On a server with a GPU each small operation would cost two copies
        with tf.device("CPU:0"):
            token_ids = self.ragged(text)
            lengths = tf.cast(token_ids.row_lengths(), tf.int32)
            return token_ids.to_tensor(PADDING_ID), lengths

    def ragged(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Encode each row to ragged ids `(b, None)`."""
        with tf.device("CPU:0"):
            return self.encode(replace_invalid(tf.convert_to_tensor(text)))


class TextDecoder(tf.Module):
    """Token ids to text.

    A row becomes `tokenizer.decode_bytes(ids, skip_special_tokens=True)`, with U+FFFD
    in place of what isn't UTF-8 as Python has it. Padding is skipped, and so are ids
    that the tokenizer doesn't have: a model's vocabulary may be filled up.

    Args:
        tokenizer: Any of `keras_gpt.tokenizers`.

    Example:

    >>> from keras_gpt.export.text_ops import TextDecoder
    >>> from keras_gpt.tokenizers import CharacterTokenizer
    >>> decode = TextDecoder(CharacterTokenizer("abc"))
    >>> decode([[2, 0, 1], [1, -1, 99]]).numpy().tolist()
    [b'cab', b'b']
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.vocab_size = tokenizer.vocab_size
        token_bytes = [
            tokenizer.decode_bytes([token_id], skip_special_tokens=True)
            for token_id in range(tokenizer.vocab_size)
        ]
        with tf.device("CPU:0"):
            # the last is for padding and ids out of range
            self.token_bytes = tf.constant([*token_bytes, b""])

    def __call__(self, token_ids: tf.Tensor) -> tf.Tensor:
        """Decode each row.

        Args:
            token_ids: Integers `(b, t)`, padded with -1.

        Returns:
            Strings `(b,)`, valid UTF-8.
        """
        with tf.device("CPU:0"):
            token_ids = tf.cast(token_ids, tf.int32)
            is_known = (token_ids >= 0) & (token_ids < self.vocab_size)
            places = tf.where(is_known, token_ids, self.vocab_size)
            pieces = tf.gather(self.token_bytes, places)
            return replace_invalid(tf.strings.reduce_join(pieces, axis=1))


class CharacterEncoder(tf.Module):
    """Text to ragged ids, as `CharacterTokenizer.encode`.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: CharacterTokenizer):
        super().__init__()
        special_ids = tokenizer.special_tokens.values()
        codes = [
            ord(tokenizer.token(token_id))
            for token_id in range(tokenizer.vocab_size)
            if token_id not in special_ids
        ]
        self.unknown_id = tokenizer.special_tokens.get(UNKNOWN)
        with tf.device("CPU:0"):
            # Ids follow the order of code points. The last is above all of them, so
            # that every search ends in the table.
            self.codes = tf.constant([*codes, np.iinfo(np.int32).max], tf.int32)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Encode valid UTF-8 `(b,)` to ragged ids `(b, None)`."""
        characters = tf.strings.unicode_decode(text, "UTF-8")
        codes = characters.flat_values  # (c,)
        token_ids = tf.searchsorted(self.codes, codes)
        is_known = tf.gather(self.codes, token_ids) == codes
        if self.unknown_id is not None:
            token_ids = tf.where(is_known, token_ids, self.unknown_id)
            return characters.with_flat_values(token_ids)
        unknown = tf.boolean_mask(codes, ~is_known)[:1]
        check = tf.debugging.Assert(
            tf.reduce_all(is_known),
            [
                "The text has a character that is not in the vocabulary:",
                tf.strings.unicode_encode(unknown, "UTF-8"),
                "Leave it out, or train the model on text that has it.",
            ],
        )
        with tf.control_dependencies([check] if check is not None else []):
            return characters.with_flat_values(tf.identity(token_ids))


class SentencePieceEncoder(tf.Module):
    """Text to ragged ids, as `SentencePieceTokenizer.encode`.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer):
        super().__init__()
        self.mark_ids = tokenizer.encode(SPACE_MARK)
        with quiet_tensorflow(), tf.device("CPU:0"):
            self.pieces = tf_text.SentencepieceTokenizer(_model_of(tokenizer))

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Encode valid UTF-8 `(b,)` to ragged ids `(b, None)`."""
        # A "▁" of the text is not a space: its bytes stand between what it separates
        parts = tf.strings.split(text, SPACE_MARK)  # (b, None)
        rows = parts.value_rowids()
        is_first = rows != tf.concat([[-1], rows], axis=0)[:-1]
        num_marks = tf.where(is_first, tf.constant(0, tf.int64), len(self.mark_ids))
        marks = tf.RaggedTensor.from_row_lengths(
            tf.tile(self.mark_ids, [tf.math.count_nonzero(~is_first)]),
            num_marks,
            validate=False,
        )
        pieces = self.pieces.tokenize(parts.flat_values)  # (part, None)
        token_ids = tf.concat([marks, pieces], axis=1)
        return parts.with_values(token_ids).merge_dims(1, 2)


def _model_of(tokenizer):
    """The bytes of the file that a tokenizer is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return (Path(folder) / tokenizer.file_name).read_bytes()


def replace_invalid(text: tf.Tensor) -> tf.Tensor:
    """Put U+FFFD in place of bytes that aren't UTF-8, as Python does."""
    return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
