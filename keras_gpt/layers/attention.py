"""Causal multi-head self-attention, for whole sequences and step by step."""

# Axes: b batch, t query position, s key position, n query head, k key-value head,
#       g query heads per key-value head, h head dimension, e embedding

import keras
from keras import ops

from keras_gpt import backend
from keras_gpt.config import check_heads
from keras_gpt.layers.initial import Normal, make_dropout
from keras_gpt.layers.linear import linear
from keras_gpt.layers.rotary import apply_rotary, rotary_cos_sin


@keras.saving.register_keras_serializable("keras_gpt")
class CausalSelfAttention(keras.layers.Layer):
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
        rotary_base: Base of rotary positions, or `None` (default) for none.
        rotary_scaling: As in `GPTConfig`. Defaults to `None`.
        qk_norm: Whether each query and key head is RMS-normalized.
        norm_epsilon: Epsilon of that normalization. Defaults to 1e-5.
        sliding_window: Each token sees itself and the `sliding_window - 1` before
            it. Defaults to `None`, all of them.
        kernel_initializer: Of query, key and value. Defaults to N(0, 0.02).
        residual_initializer: Of the output projection. Defaults to N(0, 0.02).
        **kwargs: `name`, `dtype`, `trainable` of `keras.layers.Layer`.

    Call arguments:
        x: `(batch, sequence, embedding)`.
        segment_ids: Optional integers `(batch, sequence)`: a token sees only its
            own segment.
        positions: Optional integers `(batch, sequence)` for rotary positions.
            Defaults to 0, 1, 2, ...
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
        rotary_base=None,
        rotary_scaling=None,
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
        self.rotary_base = rotary_base
        self.rotary_scaling = rotary_scaling
        self.qk_norm = qk_norm
        self.norm_epsilon = norm_epsilon
        self.sliding_window = sliding_window
        self.kernel_initializer = keras.initializers.get(kernel_initializer or Normal())
        self.residual_initializer = keras.initializers.get(
            residual_initializer or Normal()
        )
        self.supports_masking = True

    def build(self, x_shape):
        embedding_dimension = x_shape[-1]
        check_heads(
            embedding_dimension,
            self.num_heads,
            self.num_kv_heads,
            self.attention_dimension,
        )
        self._kv_heads = self.num_kv_heads or self.num_heads
        heads_width = self.attention_dimension or embedding_dimension
        self._head_dimension = heads_width // self.num_heads
        has_bias = self.query_key_value_bias
        self.query_key_value = keras.layers.Dense(
            (self.num_heads + 2 * self._kv_heads) * self._head_dimension,
            use_bias=self.use_bias if has_bias is None else has_bias,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="query_key_value",
        )
        self.output_projection = keras.layers.Dense(
            embedding_dimension,
            use_bias=self.use_bias,
            kernel_initializer=self.residual_initializer,
            dtype=self.dtype_policy,
            name="output_projection",
        )
        self.query_key_value.build(x_shape)
        self.output_projection.build((*x_shape[:-1], heads_width))
        if self.qk_norm:
            self.query_norm = keras.layers.RMSNormalization(
                epsilon=self.norm_epsilon, dtype=self.dtype_policy, name="query_norm"
            )
            self.key_norm = keras.layers.RMSNormalization(
                epsilon=self.norm_epsilon, dtype=self.dtype_policy, name="key_norm"
            )
            self.query_norm.build((None, None, None, self._head_dimension))
            self.key_norm.build((None, None, None, self._head_dimension))
        self.scores_dropout = make_dropout(
            self.dropout_rate, dtype=self.dtype_policy, name="scores_dropout"
        )
        self.output_dropout = make_dropout(
            self.dropout_rate, dtype=self.dtype_policy, name="output_dropout"
        )
        self.scores_dropout.build((None, self.num_heads, None, None))
        self.output_dropout.build(x_shape)
        self.built = True

    def call(
        self,
        x,
        segment_ids=None,
        positions=None,
        return_attention_scores=False,
        training=None,
    ):
        query, key, value = self._project(x, positions, training)
        context, attention_scores = self._attend_within(
            query, key, value, segment_ids, training, return_attention_scores
        )
        output = self._combine(context, training)
        return (output, attention_scores) if return_attention_scores else output

    def compute_output_spec(
        self,
        x,
        segment_ids=None,
        positions=None,
        return_attention_scores=False,
        training=None,
    ):
        output = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return output
        b, t, _ = x.shape
        shape = (b, self.num_heads, t, t)
        return output, keras.KerasTensor(shape, dtype=self.compute_dtype)

    def prefill(self, x, cache_length, segment_ids=None, positions=None):
        """Do what `call` does and keep keys and values for `decode`.

        Args:
            x: `(batch, sequence, embedding)`.
            cache_length: Tokens that the cache has room for.
            segment_ids: As in `call`.
            positions: As in `call`.

        Returns:
            The output `(batch, sequence, embedding)` and the cache: keys and values,
            each `(batch, kv_heads, cache_length, head_dimension)`.
        """
        query, key, value = self._project(x, positions)
        context, _ = self._attend_within(query, key, value, segment_ids)
        room = [[0, 0], [0, 0], [0, cache_length - ops.shape(x)[1]], [0, 0]]
        return self._combine(context), (ops.pad(key, room), ops.pad(value, room))

    def decode(self, x, cache, position, document_start=None):
        """Attend from new tokens to the cache, to those before them and themselves.

        Args:
            x: `(batch, tokens, embedding)`.
            cache: Keys and values as `prefill` returns them. The backend may write
                into it in place: use only the returned one afterwards.
            position: Integers `(batch, tokens)`, the place of each token, or
                `(batch,)` for one token a row. What the cache holds in a later place
                isn't seen.
            document_start: Optional integers of the same shape, the place where each
                token's document starts; nothing before it is seen.

        Returns:
            The output `(batch, tokens, embedding)` and the new cache.
        """
        if len(position.shape) == 1:
            position = position[:, None]
            if document_start is not None:
                document_start = document_start[:, None]
        in_document = position if document_start is None else position - document_start
        query, key, value = self._project(x, in_document)
        keys = backend.write_cache(cache[0], key, position)
        values = backend.write_cache(cache[1], value, position)
        s = ops.arange(ops.shape(keys)[2], dtype="int32")  # (s,)
        mask = s <= position[:, :, None]  # (b, t, s)
        if document_start is not None:
            mask = ops.logical_and(mask, s >= document_start[:, :, None])
        if self.sliding_window is not None:
            recent = s > position[:, :, None] - self.sliding_window
            mask = ops.logical_and(mask, recent)
        context, _ = self._attend(query, keys, values, mask[:, None, None])
        return self._combine(context), (keys, values)

    def _project(self, x, positions, training=False):
        """Q, K and V: `(b, n, t, h)`, `(b, k, t, h)`, `(b, k, t, h)`."""
        t = ops.shape(x)[1]
        n, k = self.num_heads, self._kv_heads
        # the batch as -1, and slices where there could be splits: a graph whose batch
        # is unknown then needs fewer operations on shapes
        projected = ops.reshape(
            linear(self.query_key_value, x, training),
            (-1, t, n + 2 * k, self._head_dimension),
        )
        turned, value = projected[:, :, : n + k], projected[:, :, n + k :]
        if self.qk_norm:
            query, key = turned[:, :, :n], turned[:, :, n:]
            turned = ops.concatenate(
                [self.query_norm(query), self.key_norm(key)], axis=2
            )
        if self.rotary_base is not None:
            if positions is None:
                positions = ops.arange(t, dtype="int32")
            cos, sin = rotary_cos_sin(
                positions, self._head_dimension, self.rotary_base, self.rotary_scaling
            )
            turned = apply_rotary(turned, cos, sin)
        query, key = turned[:, :, :n], turned[:, :, n:]
        return tuple(ops.transpose(part, (0, 2, 1, 3)) for part in (query, key, value))

    def _attend_within(
        self, query, key, value, segment_ids, training=False, need_scores=False
    ):
        """Attend within one sequence, with the backend's fused kernel if it serves."""
        drops = bool(training) and self.dropout_rate > 0
        plain = segment_ids is None and self.sliding_window is None
        if plain and not drops and not need_scores:
            context = backend.fused_attention(query, key, value)
            if context is not None:
                return context, None
        s = ops.arange(ops.shape(query)[2], dtype="int32")
        distance = s[:, None] - s  # (t, s)
        mask = distance >= 0
        if self.sliding_window is not None:
            mask = ops.logical_and(mask, distance < self.sliding_window)
        if segment_ids is not None:
            same = ops.equal(segment_ids[:, :, None], segment_ids[:, None, :])
            mask = ops.logical_and(mask, same)[:, None, None]  # (b, 1, 1, t, s)
        return self._attend(query, key, value, mask, training)

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
        k, h = self._kv_heads, self._head_dimension
        g = self.num_heads // k
        # the queries that share a key head are rows of one product
        query = ops.reshape(query * h**-0.5, (-1, k, g * t, h))
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))  # (b, k, gt, s)
        scores = ops.cast(ops.reshape(scores, (-1, k, g, t, s)), "float32")
        scores = ops.where(mask, scores, -1e30)
        # Keras warns of a softmax over one value, which one token's is
        is_single = isinstance(s, int) and s == 1  # TensorFlow may not know it
        scores = ops.ones_like(scores) if is_single else ops.softmax(scores, axis=-1)
        attention_scores = ops.cast(scores, value.dtype)
        weights = attention_scores
        if training and self.dropout_rate > 0:
            weights = self.scores_dropout(weights, training=training)
        context_weights = ops.matmul(ops.reshape(weights, (-1, k, g * t, s)), value)
        return (
            ops.reshape(context_weights, (-1, k * g, t, h)),
            ops.reshape(attention_scores, (-1, k * g, t, s)),
        )

    def _combine(self, context, training=False):
        """From the heads' `(b, n, t, h)` to the output `(b, t, e)`."""
        x = ops.transpose(context, (0, 2, 1, 3))
        t = ops.shape(x)[1]
        x = ops.reshape(x, (-1, t, self.num_heads * self._head_dimension))
        x = linear(self.output_projection, x, training)
        return self.output_dropout(x, training=training)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "attention_dimension": self.attention_dimension,
            "dropout_rate": self.dropout_rate,
            "use_bias": self.use_bias,
            "query_key_value_bias": self.query_key_value_bias,
            "rotary_base": self.rotary_base,
            "rotary_scaling": self.rotary_scaling,
            "qk_norm": self.qk_norm,
            "norm_epsilon": self.norm_epsilon,
            "sliding_window": self.sliding_window,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "residual_initializer": keras.initializers.serialize(
                self.residual_initializer
            ),
        }
