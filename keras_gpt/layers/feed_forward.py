"""The feed-forward network of a transformer block."""

# Axes: b batch, t position, e embedding, f feed-forward dimension

import keras
from keras import ops

from keras_gpt import backend
from keras_gpt.config import ACTIVATIONS, check_choice, default_feed_forward_dimension
from keras_gpt.layers.base import BaseLayer, get_initializer
from keras_gpt.layers.linear import linear


def _gelu(x):
    return backend.gelu(x)


def _gelu_tanh(x):
    return ops.gelu(x, approximate=True)


def _relu_squared(x):
    return ops.square(ops.relu(x))


def _swiglu(x):
    gate, up = ops.split(x, 2, axis=-1)
    return ops.silu(gate) * up


_ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu_squared": _relu_squared,
    "swiglu": _swiglu,
}


@keras.saving.register_keras_serializable("keras_gpt")
class FeedForward(BaseLayer):
    """Two linear transformations with an activation between them.

    Args:
        feed_forward_dimension: Hidden width. Defaults to what `GPTConfig` says.
        activation: `"gelu"`, `"gelu_tanh"`, `"relu_squared"` or `"swiglu"`. For
            `"swiglu"` the first matrix holds the gate, then the values.
        use_bias: Whether both have biases. Defaults to True.
        dropout_rate: Fraction of the output dropped in training. Defaults to 0.
        kernel_initializer: Of the first matrix. Defaults to N(0, 0.02).
        residual_initializer: Of the second matrix, whose output is added to the
            residual stream. Defaults to N(0, 0.02).
        **kwargs: `name`, `dtype`, `trainable` of `keras.layers.Layer`.

    Call arguments:
        x: `(batch, sequence, embedding)`.

    Returns:
        `(batch, sequence, embedding)`.

    References:
        - [Hendrycks and Gimpel, 2016](https://arxiv.org/abs/1606.08415), GELU
        - [Shazeer, 2020](https://arxiv.org/abs/2002.05202), SwiGLU
        - [So et al., 2021](https://arxiv.org/abs/2109.08668), squared ReLU
    """

    def __init__(
        self,
        feed_forward_dimension=None,
        *,
        activation="gelu",
        use_bias=True,
        dropout_rate=0.0,
        kernel_initializer=None,
        residual_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_choice("activation", activation, ACTIVATIONS)
        self.feed_forward_dimension = feed_forward_dimension
        self.activation = activation
        self.use_bias = use_bias
        self.dropout_rate = dropout_rate
        self.kernel_initializer = get_initializer(kernel_initializer)
        self.residual_initializer = get_initializer(residual_initializer)

    def build(self, x_shape):
        embedding_dimension = x_shape[-1]
        hidden = self.feed_forward_dimension or default_feed_forward_dimension(
            embedding_dimension, self.activation
        )
        self.dropout = self.make_dropout("dropout")
        is_gated = self.activation == "swiglu"
        self.up_projection = self.make_dense(
            "up_projection",
            2 * hidden if is_gated else hidden,
            self.use_bias,
            self.kernel_initializer,
        )
        self.up_projection.build(x_shape)
        self.down_projection = self.make_dense(
            "down_projection",
            embedding_dimension,
            self.use_bias,
            self.residual_initializer,
        )
        self.down_projection.build((*x_shape[:-1], hidden))
        self.dropout.build(x_shape)
        self.built = True

    def call(self, x, training=None):
        x = linear(self.up_projection, x, training)  # (b, t, f); with a gate 2f
        x = _ACTIVATIONS[self.activation](x)  # (b, t, f)
        x = linear(self.down_projection, x, training)  # (b, t, e)
        return self.dropout(x, training=training)

    def compute_output_shape(self, x_shape):
        return x_shape
