"""Causal multi-head self-attention, for whole sequences and step by step."""

# Axes: b batch, t query position, s key position, n query head, k key-value head,
#       g query heads per key-value head, h head dimension, e embedding

import keras
from keras import ops

from keras_gpt import backend
from keras_gpt.config import check_heads
from keras_gpt.layers.base import BaseLayer, get_initializer
from keras_gpt.layers.linear import linear
from keras_gpt.layers.rotary import apply_rotary


@keras.saving.register_keras_serializable("keras_gpt")
class CausalSelfAttention(BaseLayer):
    """Multi-head self-attention in which no token sees a later one.

    Args:
        num_heads: Number of query heads; must divide `attention_dimension`.
        num_kv_heads: Number of key and value heads, each shared by
            `num_heads / num_kv_heads` query heads. Defaults to `num_heads`.
        attention_dimension: Width of all query heads together. Defaults to the
            embedding dimension.
        dropout_rate: Fraction of the attention weights, and of the output, dropped
            in training. Defaults to 0.
        use_bias: Whether the projections have biases. Defaults to True.
        query_key_value_bias: Whether the first of them has. Defaults to `use_bias`.
        qk_norm: Whether each query and key head is RMS-normalized.
        norm_epsilon: Epsilon of that normalization. Defaults to 1e-5.
        sliding_window: Each token sees itself and the `sliding_window - 1` before
            it. Defaults to `None`, all of them.
        kernel_initializer: Of query, key and value. Defaults to N(0, 0.02).
        residual_initializer: Of the output projection. Defaults to N(0, 0.02).
        **kwargs: `name`, `dtype`, `trainable` of `keras.layers.Layer`.

    Call arguments:
        x: `(batch, sequence, embedding)`.
        angles: What `RotaryAngles` returns, by which queries and keys are turned.
            Defaults to `None`: they have no positions.
        segment_ids: Optional integers `(batch, sequence)`: a token sees only its
            own segment.
        return_attention_scores: Whether to return the weights too.

    Returns:
        `(batch, sequence, embedding)`; with `return_attention_scores` also the
        attention weights `(batch, heads, query, key)`, each row summing to 1.

    Raises:
        ValueError: `num_heads` doesn't divide the embedding dimension, or
            `num_kv_heads` doesn't divide `num_heads`.

    References:
        - [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)
        - [Ainslie et al., 2023](https://arxiv.org/abs/2305.13245), grouped queries
        - [Jiang et al., 2023](https://arxiv.org/abs/2310.06825), sliding window

    Example:

    >>> import numpy as np
    >>> from keras_gpt.layers import CausalSelfAttention
    >>> attention = CausalSelfAttention(num_heads=2)
    >>> x = np.ones((1, 3, 8), "float32")
    >>> y, scores = attention(x, return_attention_scores=True)
    >>> tuple(y.shape), tuple(scores.shape)
    ((1, 3, 8), (1, 2, 3, 3))
    """

    def __init__(
        self,
        num_heads,
        *,
        num_kv_heads=None,
        attention_dimension=None,
        dropout_rate=0.0,
        use_bias=True,
        query_key_value_bias=None,
        qk_norm=False,
        norm_epsilon=1e-5,
        sliding_window=None,
        kernel_initializer=None,
        residual_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.attention_dimension = attention_dimension
        self.dropout_rate = dropout_rate
        self.use_bias = use_bias
        self.query_key_value_bias = query_key_value_bias
        self.qk_norm = qk_norm
        self.norm_epsilon = norm_epsilon
        self.sliding_window = sliding_window
        self.kernel_initializer = get_initializer(kernel_initializer)
        self.residual_initializer = get_initializer(residual_initializer)

    def build(self, x_shape):
        e, n = x_shape[-1], self.num_heads
        check_heads(e, n, self.num_kv_heads, self.attention_dimension)
        width = self._width = self.attention_dimension or e
        k = self._kv_heads = self.num_kv_heads or n
        h = self._head_dimension = width // n
        has_bias = self.query_key_value_bias
        self.query_key_value = self.make_dense(
            "query_key_value",
            (n + 2 * k) * h,
            self.use_bias if has_bias is None else has_bias,
            self.kernel_initializer,
        )
        self.query_key_value.build(x_shape)
        self.output_projection = self.make_dense(
            "output_projection", e, self.use_bias, self.residual_initializer
        )
        self.output_projection.build((*x_shape[:-1], width))
        if self.qk_norm:
            norm = {"epsilon": self.norm_epsilon, "dtype": self.dtype_policy}
            self.query_norm = keras.layers.RMSNormalization(name="query_norm", **norm)
            self.key_norm = keras.layers.RMSNormalization(name="key_norm", **norm)
            self.query_norm.build((None, None, None, h))
            self.key_norm.build((None, None, None, h))
        self.scores_dropout = self.make_dropout("scores_dropout")
        self.scores_dropout.build((None, n, None, None))
        self.output_dropout = self.make_dropout("output_dropout")
        self.output_dropout.build(x_shape)
        self.built = True

    def call(
        self,
        x,
        angles=None,
        segment_ids=None,
        *,
        return_attention_scores=False,
        training=None,
    ):
        output, scores, _ = self._attend_within(
            x, angles, segment_ids, return_attention_scores, training
        )
        return (output, scores) if return_attention_scores else output

    def compute_output_spec(self, x, *args, return_attention_scores=False, **kwargs):
        b, t, _ = x.shape
        output = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        scores = keras.KerasTensor((b, self.num_heads, t, t), dtype=self.compute_dtype)
        return (output, scores) if return_attention_scores else output

    def prefill(self, x, cache_length, angles=None, segment_ids=None):
        """Do what `call` does and keep keys and values for `decode`.

        Args:
            x: `(batch, sequence, embedding)`.
            cache_length: Tokens that the cache has room for.
            angles: As in `call`.
            segment_ids: As in `call`.

        Returns:
            The output `(batch, sequence, embedding)` and the cache: keys and values,
            each `(batch, kv_heads, cache_length, head_dimension)`.
        """
        output, _, key_value = self._attend_within(x, angles, segment_ids)
        b, k, t, h = ops.shape(key_value[0])
        rest = ops.zeros((b, k, cache_length - t, h), key_value[0].dtype)
        return output, tuple(ops.concatenate([part, rest], 2) for part in key_value)

    def decode(self, x, cache, position, angles=None, document_start=None):
        """Attend from new tokens to the cache, to those before them and themselves.

        Args:
            x: `(batch, tokens, embedding)`.
            cache: Keys and values as `prefill` returns them. The backend may write
                into it in place: use only the returned one afterwards.
            position: Integers `(batch, tokens)`, the place of each token. What the
                cache holds in a later place isn't seen.
            angles: As in `call`, for these tokens.
            document_start: Optional integers `(batch, tokens)`, the place where each
                token's document starts; nothing before it is seen.

        Returns:
            The output `(batch, tokens, embedding)` and the new cache.
        """
        query, key, value = self._project(x, angles)
        keys = backend.write_cache(cache[0], key, position)
        values = backend.write_cache(cache[1], value, position)
        s = ops.arange(ops.shape(keys)[2], dtype="int32")
        mask = self._sees(position, s)  # (b, t, s)
        if document_start is not None:
            mask = ops.logical_and(mask, s >= document_start[:, :, None])
        context = backend.fused_attention(query, keys, values, mask[:, None])
        if context is None:
            context, _ = self._attend(query, keys, values, mask[:, None, None])
        return self._combine(context), (keys, values)

    def _project(self, x, angles, training=False):
        """Q, K and V: `(b, n, t, h)`, `(b, k, t, h)`, `(b, k, t, h)`."""
        n, k, h = self.num_heads, self._kv_heads, self._head_dimension
        # the batch as -1: a graph in which it is unknown then has fewer operations on
        # shapes; splits, since the gradients of slices would be padded and added
        projected = linear(self.query_key_value, x, training)
        projected = ops.reshape(projected, (-1, ops.shape(x)[1], n + 2 * k, h))
        turned, value = ops.split(projected, [n + k], axis=2)
        if self.qk_norm:
            query, key = ops.split(turned, [n], axis=2)
            query, key = self.query_norm(query), self.key_norm(key)
            turned = ops.concatenate([query, key], axis=2)
        if angles is not None:
            turned = apply_rotary(turned, angles)
        query, key = ops.split(turned, [n], axis=2)
        return tuple(ops.transpose(part, (0, 2, 1, 3)) for part in (query, key, value))

    def _attend_within(self, x, angles, segment_ids, need_scores=False, training=False):
        """Attend within one sequence, with the backend's fused kernel if it serves."""
        query, key, value = self._project(x, angles, training)
        drops = training and self.dropout_rate > 0
        is_plain = segment_ids is None and self.sliding_window is None
        context = scores = None
        if is_plain and not drops and not need_scores:
            context = backend.fused_attention(query, key, value)
        if context is None:
            s = ops.arange(ops.shape(x)[1], dtype="int32")
            mask = self._sees(s, s)  # (t, s)
            if segment_ids is not None:
                same = ops.equal(segment_ids[:, :, None], segment_ids[:, None, :])
                mask = ops.logical_and(mask, same)[:, None, None]  # (b, 1, 1, t, s)
            context, scores = self._attend(query, key, value, mask, training)
        return self._combine(context, training), scores, (key, value)

    def _sees(self, t, s):
        """Which places `s` a token in place `t` sees, `(..., t, s)`."""
        t = t[..., None]
        if self.sliding_window is None:
            return s <= t
        return ops.logical_and(s <= t, s > t - self.sliding_window)

    def _attend(self, query, key, value, mask, training=False):
        """Weigh the values.

        Args:
            query: `(b, n, t, h)`.
            key: `(b, k, s, h)`.
            value: `(b, k, s, h)`.
            mask: Booleans that broadcast to `(b, k, g, t, s)`, true where seen.
            training: Whether dropout applies.

        Returns:
            Context `(b, n, t, h)` and attention scores `(b, n, t, s)`.
        """
        t, s = ops.shape(query)[2], ops.shape(key)[2]
        n, k, h = self.num_heads, self._kv_heads, self._head_dimension
        g = n // k
        # the queries that share a key head are rows of one product
        query = ops.reshape(query * h**-0.5, (-1, k, g * t, h))
        scores = backend.multiply(query, key, is_transposed=True)  # (b, k, gt, s)
        scores = ops.reshape(scores, (-1, k, g, t, s))
        # added, not chosen by `where`, whose gradient takes a pass over all of them
        scores = scores + ops.cast(ops.where(mask, 0.0, -1e30), scores.dtype)
        # Keras warns of a softmax over one value, which one token's is
        is_single = isinstance(s, int) and s == 1  # TensorFlow may not know it
        scores = ops.ones_like(scores) if is_single else backend.softmax(scores)
        attention_scores = ops.reshape(scores, (-1, n, t, s))
        weights = self.scores_dropout(attention_scores, training=training)
        weights = ops.reshape(weights, (-1, k, g * t, s))
        context = backend.multiply(weights, value)
        return ops.reshape(context, (-1, n, t, h)), attention_scores

    def _combine(self, context, training=False):
        """From the heads' `(b, n, t, h)` to the output `(b, t, e)`."""
        x = ops.transpose(context, (0, 2, 1, 3))
        x = ops.reshape(x, (-1, ops.shape(x)[1], self.num_heads * self._head_dimension))
        x = linear(self.output_projection, x, training)
        return self.output_dropout(x, training=training)
