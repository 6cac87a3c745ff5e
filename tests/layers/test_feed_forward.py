import math

import numpy as np
import pytest
from keras import ops

from keras_gpt.layers import FeedForward

pytestmark = pytest.mark.every_backend


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


def relu_squared(x):
    return np.maximum(x, 0) ** 2


def swiglu(x):
    gate, up = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return gate / (1 + np.exp(-gate)) * up


REFERENCE = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu_squared": relu_squared,
    "swiglu": swiglu,
}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", REFERENCE)
def test_output_is_that_of_numpy(activation, use_bias, randomize):
    layer = FeedForward(12, activation=activation, use_bias=use_bias)
    layer.build((None, None, 8))
    randomize(layer)
    weights = [np.array(ops.convert_to_numpy(w), "float64") for w in layer.weights]
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    if use_bias:
        up, up_bias, down, down_bias = weights
    else:
        (up, down), up_bias, down_bias = weights, 0, 0
    assert up.shape == (8, 24 if activation == "swiglu" else 12)
    expected = REFERENCE[activation](x @ up + up_bias) @ down + down_bias
    output = ops.convert_to_numpy(layer(x.astype("float32")))
    # float32 against float64; outputs are about 10
    np.testing.assert_allclose(output, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("activation", "hidden"), [("gelu", 32), ("swiglu", 32)])
def test_hidden_width_defaults_to_that_of_the_config(activation, hidden):
    layer = FeedForward(activation=activation)
    layer.build((None, None, 8))
    assert layer.weights[-2].shape[0] == hidden


def test_dropout_acts_only_in_training(randomize):
    layer = FeedForward(12, dropout_rate=0.25)
    x = np.ones((100, 3, 8), "float32")
    layer.build(x.shape)
    randomize(layer)
    still = np.array(ops.convert_to_numpy(layer(x, training=False)))
    dropped = np.array(ops.convert_to_numpy(layer(x, training=True)))
    # 2,400 draws: a standard deviation of 0.009
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.05)
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], still[kept] / 0.75, rtol=1e-5)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="activation='relu'"):
        FeedForward(12, activation="relu")
