"""A transformer block: attention and feed-forward network, each normalized first."""

# Axes: b batch, t position, e embedding

import keras

from keras_gpt.config import NORMALIZATIONS
from keras_gpt.layers.attention import CausalSelfAttention
from keras_gpt.layers.feed_forward import FeedForward


def make_normalization(normalization, *, epsilon, use_bias, dtype, name):
    """The Keras layer for `"layer_norm"` or `"rms_norm"`."""
    if normalization == "layer_norm":
        return keras.layers.LayerNormalization(
            epsilon=epsilon, center=use_bias, dtype=dtype, name=name
        )
    if normalization == "rms_norm":
        return keras.layers.RMSNormalization(epsilon=epsilon, dtype=dtype, name=name)
    raise ValueError(
        f"`normalization` must be one of {NORMALIZATIONS}. "
        f"Received: normalization={normalization!r}."
    )


@keras.saving.register_keras_serializable("keras_gpt")
class TransformerBlock(keras.layers.Layer):
    """`x = x + attention(norm(x)); x = x + feed_forward(norm(x))`.

    Args:
        num_heads: Number of query heads.
        num_kv_heads: Number of key and value heads. Defaults to `num_heads`.
        attention_dimension: As in `CausalSelfAttention`.
        feed_forward_dimension: Hidden width of the feed-forward network. Defaults
            to what `GPTConfig` says.
        dropout_rate: Fraction dropped from attention weights and both branches.
        normalization: `"layer_norm"` or `"rms_norm"`.
        norm_epsilon: Added to the variance. Defaults to 1e-5.
        activation: `"gelu"`, `"gelu_tanh"`, `"relu_squared"` or `"swiglu"`.
        use_bias: Whether projections and layer norms have biases.
        query_key_value_bias: As in `CausalSelfAttention`.
        rotary_base: Base of rotary positions, or `None` (default) for none.
        rotary_scaling: As in `GPTConfig`.
        qk_norm: Whether query and key heads are RMS-normalized.
        sliding_window: Tokens that each token sees, or `None` (default) for all.
        kernel_initializer: Of all kernels but those below. Defaults to N(0, 0.02).
        residual_initializer: Of the two kernels whose output is added to `x`.
            Defaults to N(0, 0.02).
        **kwargs: `name`, `dtype`, `trainable` of `keras.layers.Layer`.

    Call arguments:
        x: `(batch, sequence, embedding)`.
        segment_ids: As in `CausalSelfAttention`.
        positions: As in `CausalSelfAttention`.
        return_attention_scores: Whether to return the attention weights too.

    Returns:
        `(batch, sequence, embedding)`; with `return_attention_scores` also
        `(batch, heads, query, key)`.

    Example:

    >>> import numpy as np
    >>> from keras_gpt.layers import TransformerBlock
    >>> block = TransformerBlock(num_heads=2, activation="swiglu")
    >>> tuple(block(np.ones((1, 3, 8), "float32")).shape)
    (1, 3, 8)
    """

    def __init__(
        self,
        num_heads,
        *,
        num_kv_heads=None,
        attention_dimension=None,
        feed_forward_dimension=None,
        dropout_rate=0.0,
        normalization="layer_norm",
        norm_epsilon=1e-5,
        activation="gelu",
        use_bias=True,
        query_key_value_bias=None,
        rotary_base=None,
        rotary_scaling=None,
        qk_norm=False,
        sliding_window=None,
        kernel_initializer=None,
        residual_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.attention_dimension = attention_dimension
        self.feed_forward_dimension = feed_forward_dimension
        self.dropout_rate = dropout_rate
        self.normalization = normalization
        self.norm_epsilon = norm_epsilon
        self.activation = activation
        self.use_bias = use_bias
        self.query_key_value_bias = query_key_value_bias
        self.rotary_base = rotary_base
        self.rotary_scaling = rotary_scaling
        self.qk_norm = qk_norm
        self.sliding_window = sliding_window
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.residual_initializer = keras.initializers.get(residual_initializer)
        self.supports_masking = True
        norm = {
            "epsilon": norm_epsilon,
            "use_bias": use_bias,
            "dtype": self.dtype_policy,
        }
        self.attention_norm = make_normalization(
            normalization, name="attention_norm", **norm
        )
        self.attention = CausalSelfAttention(
            num_heads,
            num_kv_heads=num_kv_heads,
            attention_dimension=attention_dimension,
            dropout_rate=dropout_rate,
            use_bias=use_bias,
            query_key_value_bias=query_key_value_bias,
            rotary_base=rotary_base,
            rotary_scaling=rotary_scaling,
            qk_norm=qk_norm,
            norm_epsilon=norm_epsilon,
            sliding_window=sliding_window,
            kernel_initializer=kernel_initializer,
            residual_initializer=residual_initializer,
            dtype=self.dtype_policy,
            name="attention",
        )
        self.feed_forward_norm = make_normalization(
            normalization, name="feed_forward_norm", **norm
        )
        self.feed_forward = FeedForward(
            feed_forward_dimension,
            activation=activation,
            use_bias=use_bias,
            dropout_rate=dropout_rate,
            kernel_initializer=_copy(self.kernel_initializer),
            residual_initializer=_copy(self.residual_initializer),
            dtype=self.dtype_policy,
            name="feed_forward",
        )

    def build(self, x_shape):
        self.attention_norm.build(x_shape)
        self.attention.build(x_shape)
        self.feed_forward_norm.build(x_shape)
        self.feed_forward.build(x_shape)
        self.built = True

    def call(
        self,
        x,
        segment_ids=None,
        positions=None,
        return_attention_scores=False,
        training=None,
    ):
        attended = self.attention(
            self.attention_norm(x),
            segment_ids=segment_ids,
            positions=positions,
            return_attention_scores=return_attention_scores,
            training=training,
        )
        if return_attention_scores:
            attended, attention_scores = attended
        x = x + attended
        x = x + self.feed_forward(self.feed_forward_norm(x), training=training)
        return (x, attention_scores) if return_attention_scores else x

    def compute_output_spec(self, x, **kwargs):
        return self.attention.compute_output_spec(x, **kwargs)

    def prefill(self, x, cache_length, segment_ids=None, positions=None):
        """Do what `call` does and keep the cache; see `CausalSelfAttention.prefill`."""
        attended, cache = self.attention.prefill(
            self.attention_norm(x), cache_length, segment_ids, positions
        )
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x)), cache

    def decode(self, x, cache, position, document_start=None):
        """Read new tokens against the cache; see `CausalSelfAttention.decode`."""
        attended, cache = self.attention.decode(
            self.attention_norm(x), cache, position, document_start
        )
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x)), cache

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "attention_dimension": self.attention_dimension,
            "feed_forward_dimension": self.feed_forward_dimension,
            "dropout_rate": self.dropout_rate,
            "normalization": self.normalization,
            "norm_epsilon": self.norm_epsilon,
            "activation": self.activation,
            "use_bias": self.use_bias,
            "query_key_value_bias": self.query_key_value_bias,
            "rotary_base": self.rotary_base,
            "rotary_scaling": self.rotary_scaling,
            "qk_norm": self.qk_norm,
            "sliding_window": self.sliding_window,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "residual_initializer": keras.initializers.serialize(
                self.residual_initializer
            ),
        }


def _copy(initializer):
    """An equal initializer that draws anew; one used twice draws the same twice."""
    is_random = isinstance(initializer, keras.initializers.Initializer)
    return initializer.clone() if is_random else initializer
