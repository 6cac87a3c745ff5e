"""A transformer block: attention and feed-forward network, each normalized first."""

import keras

from keras_gpt import backend
from keras_gpt.layers.base import BaseLayer, make_normalization


@keras.saving.register_keras_serializable("keras_gpt")
class TransformerBlock(BaseLayer):
    """`x = x + attention(norm(x)); x = x + feed_forward(norm(x))`.

    Args:
        attention: A `CausalSelfAttention`.
        feed_forward: A `FeedForward`.
        normalization: `"layer_norm"` or `"rms_norm"`.
        norm_epsilon: Added to the variance. Defaults to 1e-5.
        use_bias: Whether layer norms have biases. Defaults to True.
        **kwargs: `name`, `dtype`, `trainable` of `keras.layers.Layer`.

    Call arguments:
        x: `(batch, sequence, embedding)`.
        angles: As in `CausalSelfAttention`.
        segment_ids: As in `CausalSelfAttention`.
        return_attention_scores: Whether to return the attention weights too.

    Returns:
        `(batch, sequence, embedding)`; with `return_attention_scores` also
        `(batch, heads, query, key)`.

    Attributes:
        remat: Whether training keeps only a block's input, and computes what is inside
            a second time for the gradients. Defaults to False.

    Example:

    >>> import numpy as np
    >>> from keras_gpt.layers import CausalSelfAttention, FeedForward, TransformerBlock
    >>> block = TransformerBlock(
    ...     attention=CausalSelfAttention(num_heads=2),
    ...     feed_forward=FeedForward(activation="swiglu"),
    ... )
    >>> tuple(block(np.ones((1, 3, 8), "float32")).shape)
    (1, 3, 8)
    """

    remat = False

    def __init__(
        self,
        attention,
        feed_forward,
        *,
        normalization="layer_norm",
        norm_epsilon=1e-5,
        use_bias=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.normalization = normalization
        self.norm_epsilon = norm_epsilon
        self.use_bias = use_bias

        norm = (normalization, norm_epsilon, use_bias, self.dtype_policy)
        # in the order in which files hold their weights
        self.attention_norm = make_normalization(*norm, "attention_norm")
        self.attention = attention
        self.feed_forward_norm = make_normalization(*norm, "feed_forward_norm")
        self.feed_forward = feed_forward

    def build(self, x_shape):
        self.attention_norm.build(x_shape)
        self.feed_forward_norm.build(x_shape)
        for part in (self.attention, self.feed_forward):
            if not part.built:  # one that was read from a file is
                part.build(x_shape)
        self.built = True

    def __call__(self, x, *args, training=None, **kwargs):
        def run(x):
            return super(TransformerBlock, self).__call__(
                x, *args, training=training, **kwargs
            )

        if self.remat and training:
            return backend.rematerialize(run, self, x)
        return run(x)

    def call(
        self,
        x,
        angles=None,
        segment_ids=None,
        *,
        return_attention_scores=False,
        training=None,
    ):
        def attend(x):
            attended = self.attention(
                x,
                angles,
                segment_ids,
                return_attention_scores=return_attention_scores,
                training=training,
            )
            return attended if return_attention_scores else (attended, None)

        x, scores = self._read(x, attend, training)
        return (x, scores) if return_attention_scores else x

    def compute_output_spec(self, *args, **kwargs):
        return self.attention.compute_output_spec(*args, **kwargs)

    def prefill(self, x, *args, **kwargs):
        """Do what `call` does and keep the cache; see `CausalSelfAttention.prefill`."""
        return self._read(x, lambda x: self.attention.prefill(x, *args, **kwargs))

    def decode(self, x, *args, **kwargs):
        """Read new tokens against the cache; see `CausalSelfAttention.decode`."""
        return self._read(x, lambda x: self.attention.decode(x, *args, **kwargs))

    def _read(self, x, attend, training=None):
        """Both branches.

        Args:
            x: `(batch, sequence, embedding)`.
            attend: From `x`, normalized, to what attention adds to it, and to what
                else it gives: scores or a cache.
            training: Whether dropout applies.

        Returns:
            The output and what else `attend` gave.
        """
        attended, extra = attend(self.attention_norm(x))
        x = x + attended
        x = x + self.feed_forward(self.feed_forward_norm(x), training=training)
        return x, extra
