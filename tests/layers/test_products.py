"""`backend.multiply`, by which all layers multiply, and `backend.softmax`."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt import backend

pytestmark = pytest.mark.every_backend

RANDOM = np.random.default_rng(0)
# Relative to the largest: half of bfloat16's last place, of what goes in and comes out
TOLERANCES = {"float32": 1e-6, "bfloat16": 2**-7}
if keras.backend.backend() == "tensorflow":
    # which sums in bfloat16 where a processor lacks AVX-512
    TOLERANCES["bfloat16"] *= 2
SHAPES = [  # of x and of the other
    ((1, 16), (16, 24)),
    ((1, 1, 16), (16, 24)),
    ((1, 1, 5), (5, 3)),
    ((2, 1, 16), (16, 24)),
    ((2, 5, 16), (16, 3)),
    ((2, 3, 7, 16), (2, 3, 16, 9)),
    ((2, 3, 1, 16), (2, 3, 16, 9)),
    ((1, 1, 1, 1), (1, 1, 1, 1)),
    ((1, 2, 64, 64), (1, 2, 64, 32)),
    ((1, 40, 64), (64, 1)),
]


def draw(shape, dtype):
    """Values that the type holds exactly, and their tensor."""
    values = ops.cast(RANDOM.normal(size=shape).astype("float32"), dtype)
    return numpy(values), values


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(ops.stop_gradient(tensor), "float32"))


def turned(x):
    return np.swapaxes(x, -1, -2)


def assert_close(found, expected, dtype, largest=0):
    assert found.shape == expected.shape
    tolerance = TOLERANCES[dtype] * max(largest, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(("x_shape", "shape"), SHAPES)
def test_it_is_the_product_plus_the_bias(x_shape, shape, is_transposed, dtype):
    x, x_tensor = draw(x_shape, dtype)
    kernel, _ = draw(shape, dtype)
    bias, bias_tensor = draw(shape[-1:], dtype)
    given = ops.cast(turned(kernel) if is_transposed else kernel, dtype)
    for b, tensor in ((0, None), (bias, bias_tensor)):
        y = backend.multiply(x_tensor, given, tensor, is_transposed)
        assert y.dtype == x_tensor.dtype
        largest = np.abs(x @ kernel).max()
        assert_close(numpy(y), x @ kernel + b, dtype, largest)


class Products(keras.layers.Layer):
    """`x` times two weights, one after the other."""

    def __init__(self, shapes, is_transposed, **kwargs):
        super().__init__(**kwargs)
        self.is_transposed = is_transposed
        self.kernels = [self.add_weight(shape, name="kernel") for shape in shapes]
        self.bias = None
        if len(shapes[-1]) == 2:
            self.bias = self.add_weight(shapes[-1][-1:], name="bias")

    def build(self, x_shape):
        self.built = True

    def call(self, x):
        dtype = self.compute_dtype
        first, second = (ops.cast(kernel, dtype) for kernel in self.kernels)
        x = backend.multiply(ops.cast(x, dtype), first)
        second = ops.swapaxes(second, -1, -2) if self.is_transposed else second
        bias = None if self.bias is None else ops.cast(self.bias, dtype)
        x = backend.multiply(x, second, bias, self.is_transposed)
        return ops.cast(x, "float32")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_its_gradients_are_right(batch, is_transposed, dtype):
    # one step of gradient descent on the products with what is random
    policy = "mixed_bfloat16" if dtype == "bfloat16" else dtype
    shapes = [(*batch, 16, 8), (*batch, 8, 24)]
    x, _ = draw((*(batch or (2,)), 5, 16), dtype)
    upstream, _ = draw((*x.shape[:-1], 24), dtype)
    layer = Products(shapes, is_transposed, dtype=policy)
    first, second = (draw(shape, dtype)[0] for shape in shapes)
    weights = [first, second, *([] if batch else [np.zeros(24)])]
    layer.set_weights(weights)
    model = keras.Sequential([layer])

    def loss(y_true, y_pred):
        return ops.sum(y_true * y_pred)

    model.compile(keras.optimizers.SGD(1.0), loss)
    model.fit(x, upstream, batch_size=len(x), shuffle=False, verbose=0)
    if not batch:
        x, upstream = x.reshape(-1, 16), upstream.reshape(-1, 24)
    hidden, to_hidden = x @ first, upstream @ turned(second)
    expected = [turned(x) @ to_hidden, turned(hidden) @ upstream, upstream.sum(0)]
    pairs = zip(weights, layer.get_weights(), strict=True)
    for (old, new), right in zip(pairs, expected, strict=False):
        assert_close(old - new, right, dtype)


class Softmax(keras.layers.Layer):
    """`backend.softmax` of weights."""

    def build(self, x_shape):
        self.scores = self.add_weight(x_shape[1:], name="scores")
        self.built = True

    def call(self, x):
        weights = backend.softmax(ops.cast(self.scores, self.compute_dtype))
        return ops.cast(weights, "float32") * ops.cast(x, "float32")


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_gradient_of_softmax_is_right(dtype):
    policy = "mixed_bfloat16" if dtype == "bfloat16" else dtype
    scores, _ = draw((3, 50), dtype)
    upstream, _ = draw((1, 3, 50), dtype)
    model = keras.Sequential([Softmax(dtype=policy)])
    model.build(upstream.shape)
    model.set_weights([scores])

    def loss(y_true, y_pred):
        return ops.sum(y_pred)

    model.compile(keras.optimizers.SGD(1.0), loss)
    model.fit(upstream, upstream, shuffle=False, verbose=0)
    y = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    right = y * (upstream[0] - (upstream[0] * y).sum(-1, keepdims=True))
    assert_close(scores - model.get_weights()[0], right, dtype)
