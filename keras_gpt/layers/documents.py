"""Telling packed documents apart."""

# Axes: b batch, t position

import keras
from keras import ops

from keras_gpt.layers.base import BaseLayer


@keras.saving.register_keras_serializable("keras_gpt")
class DocumentPositions(BaseLayer):
    """Tell packed documents apart: which document each token is in, and where.

    Args:
        document_separator_id: The token id that ends each document.
        **kwargs: `name` and so on of `keras.layers.Layer`.

    Call arguments:
        token_ids: Integers `(batch, sequence)`.

    Returns:
        `segment_ids` and `positions`, both int32 `(batch, sequence)`: the number of
        separators before each token, and the distance to the document's first.

    Example:

    >>> import numpy as np
    >>> from keras_gpt.layers import DocumentPositions
    >>> segments, positions = DocumentPositions(0)(np.array([[5, 6, 0, 7, 8, 9]]))
    >>> print([int(i) for i in segments[0]], [int(i) for i in positions[0]])
    [0, 0, 0, 1, 1, 1] [0, 1, 2, 0, 1, 2]
    """

    def __init__(self, document_separator_id, **kwargs):
        super().__init__(**kwargs)
        self.document_separator_id = document_separator_id

    def build(self, token_ids_shape):
        self.built = True

    def call(self, token_ids):
        is_separator = ops.cast(self._is_separator(token_ids), "int32")
        # the separator belongs to the document that it ends
        segment_ids = ops.cumsum(is_separator, axis=1) - is_separator  # (b, t)
        # a document starts after as many tokens as the earlier ones hold
        is_earlier = segment_ids[:, None, :] < segment_ids[:, :, None]  # (b, t, t)
        starts = ops.sum(ops.cast(is_earlier, "int32"), axis=-1)  # (b, t)
        index = ops.arange(ops.shape(token_ids)[1], dtype="int32")
        return segment_ids, index - starts

    def find_start(self, token_ids, lengths):
        """The place where the document of what follows each row starts.

        Args:
            token_ids: Integers `(batch, sequence)`.
            lengths: Integers `(batch,)`, how many of them are the row's own.

        Returns:
            Integers `(batch,)`.
        """
        index = ops.arange(ops.shape(token_ids)[1], dtype="int32")
        ends = ops.logical_and(self._is_separator(token_ids), index < lengths[:, None])
        return ops.max(ops.where(ends, index + 1, 0), axis=1)

    def follow(self, token_ids, position, start):
        """The places where the documents of new tokens start.

        Args:
            token_ids: Integers `(batch, tokens)`.
            position: Integers `(batch, tokens)`, their places.
            start: Integers `(batch,)`, where the first one's document starts.

        Returns:
            Integers `(batch, tokens)`, and `(batch,)` for what follows them.
        """
        start = start[:, None]
        ends = ops.where(self._is_separator(token_ids), position + 1, start)  # (b, t)
        if token_ids.shape[1] > 1:  # the largest so far
            index = ops.arange(token_ids.shape[1], dtype="int32")
            earlier = index <= index[:, None]  # (t, t)
            ends = ops.max(ops.where(earlier, ends[:, None, :], 0), axis=-1)
            start = ops.concatenate([start, ends[:, :-1]], axis=1)
        return start, ends[:, -1]

    def _is_separator(self, token_ids):
        return ops.equal(token_ids, self.document_separator_id)

    def compute_output_spec(self, token_ids):
        return (
            keras.KerasTensor(token_ids.shape, dtype="int32"),
            keras.KerasTensor(token_ids.shape, dtype="int32"),
        )
