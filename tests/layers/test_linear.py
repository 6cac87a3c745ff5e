import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt import backend
from keras_gpt.layers.linear import GROUP_SIZE, Linear, linear, reverse

pytestmark = pytest.mark.every_backend

RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(size=(64, 10)).astype("float32")
BIAS = RANDOM.normal(size=10).astype("float32")


def make_dense(use_bias=True, dtype="float32", width=64):
    dense = keras.layers.Dense(10, use_bias=use_bias, dtype=dtype)
    dense.build((None, None, width))
    dense.set_weights([KERNEL[:width], BIAS] if use_bias else [KERNEL[:width]])
    return dense


def quantize(layer):
    layer.quantize("int8")
    return layer


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(ops.stop_gradient(tensor), "float32"))


# PyTorch's kernel crashes where the width isn't a multiple of 16
@pytest.mark.parametrize("shape", [(1, 64), (2, 3, 64), (5, 24), (2, 33), (1, 1)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_int8_weights_give_the_product_with_what_they_stand_for(shape, use_bias):
    dense = quantize(make_dense(use_bias, width=shape[-1]))
    x = RANDOM.normal(size=shape).astype("float32")
    weights = numpy(dense.kernel).astype("float64") / numpy(dense.kernel_scale)
    expected = x @ weights + (BIAS if use_bias else 0)
    # a weight is rounded to 1/127 of its column's largest
    kernel = KERNEL[: shape[-1]]
    np.testing.assert_allclose(weights, kernel, atol=np.abs(kernel).max() / 127)
    y = numpy(linear(dense, ops.convert_to_tensor(x)))
    # PyTorch multiplies in bfloat16: 2**-8 of sums of 64 products of about 1
    np.testing.assert_allclose(y, expected, atol=0.15)
    assert y.shape == (*shape[:-1], 10)


def make_int4(kernel, use_bias=True, block_size=GROUP_SIZE, dtype="float32"):
    dense = Linear(kernel.shape[1], use_bias=use_bias, dtype=dtype)
    dense.build((None, len(kernel)))
    bias = RANDOM.normal(size=kernel.shape[1]).astype("float32")
    dense.set_weights([kernel, bias] if use_bias else [kernel])
    config = keras.quantizers.Int4QuantizationConfig(block_size=block_size)
    dense.quantize(config=config)
    return dense, bias if use_bias else 0


# 10 outputs are none that PyTorch's kernel takes
@pytest.mark.parametrize("shape", [(1, 64), (2, 3, 64), (5, 96)])
@pytest.mark.parametrize("units", [10, 48, 128])
@pytest.mark.parametrize("use_bias", [True, False])
def test_int4_weights_are_from_the_least_to_the_largest_of_a_group(
    shape, units, use_bias
):
    kernel = RANDOM.normal(size=(shape[-1], units)).astype("float32")
    kernel[:GROUP_SIZE, 0] = 0.0
    kernel[:GROUP_SIZE, 1] = -0.3
    dense, bias = make_int4(kernel, use_bias)
    groups = kernel.reshape(-1, GROUP_SIZE, units)
    least, largest = (f(groups, axis=1, keepdims=True) for f in (np.min, np.max))
    step = np.maximum((largest - least) / 15, 1e-9)
    rounded = (least + step * np.rint((groups - least) / step)).reshape(kernel.shape)
    x = RANDOM.normal(size=shape).astype("float32")
    y = numpy(linear(dense, ops.convert_to_tensor(x)))
    # PyTorch multiplies in bfloat16: 2**-8 of sums of up to 96 products of about 1
    np.testing.assert_allclose(y, x @ rounded + bias, atol=0.15)
    # and Keras's own layer is the same in float32
    y = numpy(dense(ops.convert_to_tensor(x)))
    np.testing.assert_allclose(y, x @ rounded + bias, atol=1e-4)


@pytest.mark.parametrize("block_size", [16, 48, 64])
def test_int4_groups_may_have_other_sizes(block_size):
    kernel = RANDOM.normal(size=(64, 16)).astype("float32")
    dense, bias = make_int4(kernel, block_size=block_size)
    x = RANDOM.normal(size=(1, 64)).astype("float32")
    y = numpy(linear(dense, ops.convert_to_tensor(x)))
    # weights up to 3.5, rounded to 1/30 of their range or, where zero points are
    # whole, 1/15: of sums of 64 such errors 4 standard deviations
    np.testing.assert_allclose(y, x @ kernel + bias, atol=4 * 8 * 7 / 15 / 12**0.5)


def test_what_int4_can_hold_is_kept():
    # as a Q4_1 file has it: in each group some 0 and some 15
    steps = RANDOM.integers(0, 16, size=(2, GROUP_SIZE, 16))
    steps[:, :2] = np.array([0, 15])[:, None]
    scale, least = RANDOM.normal(size=(2, 2, 1, 16)).astype("float16")
    kernel = (steps * np.abs(scale) + least).reshape(-1, 16).astype("float32")
    dense, _ = make_int4(kernel, use_bias=False)
    kept = numpy(dense(ops.eye(len(kernel))))
    # the rounding of float32
    np.testing.assert_allclose(kept, kernel, atol=1e-6 * np.abs(kernel).max())


def test_int4_weights_that_are_assigned_later_are_read():
    kernels = RANDOM.normal(size=(2, 64, 16)).astype("float32")
    dense, other = (make_int4(kernel, use_bias=False)[0] for kernel in kernels)
    x = ops.convert_to_tensor(RANDOM.normal(size=(1, 64)).astype("float32"))
    before = numpy(linear(dense, x))
    dense.set_weights(other.get_weights())
    after = numpy(linear(dense, x))
    np.testing.assert_array_equal(after, numpy(linear(other, x)))
    assert (before != after).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_bfloat16"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_activations_keep_their_dtype(weights, dtype):
    if weights == "int8":
        dense = quantize(make_dense(dtype=dtype))
    else:
        dense, _ = make_int4(RANDOM.normal(size=(64, 32)), dtype=dtype)
    y = linear(dense, ops.ones((1, 64), dtype=dense.compute_dtype))
    assert keras.backend.standardize_dtype(y.dtype) == dense.compute_dtype


def test_a_layer_that_is_not_quantized_is_called():
    dense = make_dense()
    x = ops.convert_to_tensor(RANDOM.normal(size=(3, 64)).astype("float32"))
    np.testing.assert_array_equal(numpy(linear(dense, x)), numpy(dense(x)))


@pytest.mark.parametrize("tie_weights", [True, False])
def test_logits_of_int8_embeddings_are_products_with_what_they_stand_for(tie_weights):
    layer = keras.layers.ReversibleEmbedding(10, 64, tie_weights=tie_weights)
    layer.build((None, None))
    layer.set_weights([KERNEL.T] if tie_weights else [KERNEL.T, KERNEL])
    quantize(layer)
    x = RANDOM.normal(size=(2, 64)).astype("float32")
    logits = numpy(reverse(layer, ops.convert_to_tensor(x)))
    # as above, and the rounding of the weights themselves
    np.testing.assert_allclose(logits, x @ KERNEL, atol=0.3)
    check_first_row(lambda x: reverse(layer, x), layer, x, logits)


def check_first_row(function, layer, x, y):
    """Compiled for one row, what a model generates by, it's the same function."""
    compiled = backend.compile_function(
        lambda state, inputs: (state, function(inputs["x"])), layer.variables
    )
    _, row = compiled({}, {"x": ops.convert_to_tensor(x[:1])})
    np.testing.assert_allclose(numpy(row), y[:1], atol=1e-5)  # the order of 64 terms


def test_a_row_alone_is_multiplied_as_among_others():
    dense = quantize(make_dense())
    x = RANDOM.normal(size=(2, 64)).astype("float32")
    y = numpy(linear(dense, ops.convert_to_tensor(x)))
    check_first_row(lambda x: linear(dense, x), dense, x, y)


def test_a_row_without_numbers_leaves_others_alone():
    # XLA is told that the kernel may depend on the first one
    dense = quantize(make_dense())
    x = RANDOM.normal(size=(3, 64)).astype("float32")
    expected = numpy(linear(dense, ops.convert_to_tensor(x)))
    x[0] = np.nan
    y = numpy(linear(dense, ops.convert_to_tensor(x)))
    assert np.all(np.isnan(y[0]))
    np.testing.assert_array_equal(y[1:], expected[1:])


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_the_gradient_passes_int8_weights(rows, dtype):
    # what LoRA over int8 weights needs
    dense = quantize(make_dense(dtype=dtype))
    model = keras.Sequential([keras.layers.Dense(64), dense])
    model.build((None, 64))
    dense.trainable = False
    x = RANDOM.normal(size=(rows, 64)).astype("float32")

    class Through(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = model.layers[0]

        def call(self, x):
            return linear(dense, self.first(x))

    through = Through()
    through.compile("adam", "mse")
    before = numpy(model.layers[0].kernel)
    through.fit(x, np.zeros((rows, 10), "float32"), verbose=0)
    assert np.all(numpy(model.layers[0].kernel) != before)
