"""The feed-forward network of a transformer block."""

# Axes: b batch, t position, e embedding, f feed-forward dimension

import keras
from keras import ops

from keras_gpt.config import ACTIVATIONS, default_feed_forward_dimension
from keras_gpt.layers.initial import Normal, make_dropout
from keras_gpt.layers.linear import linear


def _gelu(x):
    return ops.gelu(x, approximate=False)


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
class FeedForward(keras.layers.Layer):
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
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"`activation` must be one of {ACTIVATIONS}. "
                f"Received: activation={activation!r}."
            )
        self.feed_forward_dimension = feed_forward_dimension
        self.activation = activation
        self.use_bias = use_bias
        self.dropout_rate = dropout_rate
        self.kernel_initializer = keras.initializers.get(kernel_initializer or Normal())
        self.residual_initializer = keras.initializers.get(
            residual_initializer or Normal()
        )
        self.supports_masking = True

    def build(self, x_shape):
        embedding_dimension = x_shape[-1]
        hidden = self.feed_forward_dimension or default_feed_forward_dimension(
            embedding_dimension, self.activation
        )
        self.up_projection = keras.layers.Dense(
            2 * hidden if self.activation == "swiglu" else hidden,
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="up_projection",
        )
        self.down_projection = keras.layers.Dense(
            embedding_dimension,
            use_bias=self.use_bias,
            kernel_initializer=self.residual_initializer,
            dtype=self.dtype_policy,
            name="down_projection",
        )
        self.dropout = make_dropout(
            self.dropout_rate, dtype=self.dtype_policy, name="dropout"
        )
        self.up_projection.build(x_shape)
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

    def get_config(self):
        return {
            **super().get_config(),
            "feed_forward_dimension": self.feed_forward_dimension,
            "activation": self.activation,
            "use_bias": self.use_bias,
            "dropout_rate": self.dropout_rate,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "residual_initializer": keras.initializers.serialize(
                self.residual_initializer
            ),
        }
