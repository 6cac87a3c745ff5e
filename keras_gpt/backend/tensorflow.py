"""The backend functions on TensorFlow."""

# Axes: b batch, k key-value head, t new position, s cache position, h head dimension

import math

import keras
import numpy as np
import tensorflow as tf

from keras_gpt.backend import xla
from keras_gpt.backend.xla import (  # noqa: F401
    BYTES_PER_LOGIT,
    bucket,
    count_kept_bytes,
    in_numpy,
    logsumexp,
    matmul_int4,
    record_step,
    softmax,
)


def fused_attention(query, key, value, mask=None):
    """`None`: TensorFlow has no fused kernel."""
    del query, key, value, mask


def multiply(x, kernel, bias=None, is_transposed=False):
    """`x` times `kernel`, or times that turned, plus `bias`.

    In a graph whose batch or length is unknown, Keras's product with one matrix is a
    dozen operations on shapes around the one that multiplies.
    """
    rows = x if len(kernel.shape) == len(x.shape) else tf.reshape(x, (-1, x.shape[-1]))
    y = tf.matmul(rows, kernel, transpose_b=is_transposed)
    y = y if bias is None else y + bias
    if rows is x:
        return y
    middle = x.shape[1:-1]
    if middle.is_fully_defined():
        return tf.reshape(y, (-1, *middle, y.shape[-1]))
    return tf.reshape(y, tf.concat([tf.shape(x)[:-1], [y.shape[-1]]], axis=0))


def gelu(x):
    """The exact GELU."""
    return keras.ops.gelu(x, approximate=False)


def dropout(x, rate, seed_generator):
    """`x` with each element dropped with a probability of `rate`, else scaled up.

    Where `fit` isn't compiled, XLA makes one loop of a dozen operations for each value.
    As a part of what XLA compiles, such a function would keep its numbers in memory.
    """
    draw = None if default_jit_compile(x.dtype) else _draw_kept
    return xla.dropout(x, rate, seed_generator, draw)


_draw_kept = tf.function(xla.draw_kept, jit_compile=True)


def default_jit_compile(dtype):
    """Whether `fit` should compile with XLA.

    On CPUs XLA is faster in float32 and slower in half precision, where it doesn't
    use oneDNN's matrix kernels.
    """
    return dtype == "float32" or bool(tf.config.list_physical_devices("GPU"))


def device_memory():
    """Bytes used at most so far on an accelerator, and all; `None` on a CPU."""
    if not tf.config.list_physical_devices("GPU"):
        return None
    # TensorFlow doesn't tell how many there are
    return tf.config.experimental.get_memory_info("GPU:0")["peak"], math.inf


def zeros(shape, dtype):
    """Zeros, to be replaced."""
    return keras.ops.zeros(shape, dtype)


def assign(variable, chunks):
    """Give a variable the values of NumPy arrays that hold some rows each."""
    start = 0
    for rows in chunks:
        places = tf.range(start, start + len(rows))
        new = tf.IndexedSlices(tf.cast(rows, variable.dtype), places)
        variable.value.scatter_update(new)  # in place, as assigning to a slice isn't
        start += len(rows)


def compile_function(function, variables):
    """Compile `function(state, inputs)`, which reads `variables`.

    Both may hold arrays of NumPy.
    """
    del variables  # a tf.function captures them
    return tf.function(function, jit_compile=True)


def matmul_int8(x, kernel, scale, is_transposed=False):
    """`x` `(..., input)` times int8 `kernel` `(input, output)` over `scale`.

    `is_transposed`: the kernel is `(output, input)`.
    """
    kernel, scale = tf.convert_to_tensor(kernel), tf.convert_to_tensor(scale)
    if x.shape.is_fully_defined() and not tf.config.list_physical_devices("GPU"):
        y = _multiply_int8(tf.reshape(x, (-1, x.shape[-1])), kernel, is_transposed)
        y = tf.reshape(y, (*x.shape[:-1], y.shape[-1]))
    else:
        y = multiply(x, tf.cast(kernel, x.dtype), None, is_transposed)
    return y / tf.cast(scale, x.dtype)


@tf.function  # traced once for all kernels of a shape
def _multiply_int8(x, kernel, is_transposed):
    """`x` `(rows, input)` times an int8 kernel, whose floats XLA doesn't keep.

    For one row, by which a text is generated, they aren't even written out.
    """
    if x.shape[0] == 1 or not is_transposed:
        kernel = xla.tie(kernel, x)
    if x.shape[0] == 1 and not is_transposed:
        sums = xla.sum_blocks(x, kernel, lambda block: tf.cast(block, "float32"))
        return tf.cast(tf.reduce_sum(sums, axis=0, keepdims=True), x.dtype)
    return tf.matmul(x, tf.cast(kernel, x.dtype), transpose_b=is_transposed)


def rematerialize(function, layer, x):
    """`function(x)`, which calls the layer; what is inside is not kept for gradients.

    They make it anew, with the same dropout.
    """
    counts = [v for v in layer.variables if "int" in v.dtype]  # of seeds
    before, after = [tf.convert_to_tensor(v.value) for v in counts], []

    def pure(x):
        mapping = list(zip(counts, before, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            y = function(x)
        after[:] = after or [scope.get_current_value(v) for v in counts]
        return y

    y = tf.recompute_grad(pure)(x)
    for count, value in zip(counts, after, strict=True):
        count.assign(value)
    return y


def sum_over_chunks(function, variables, x, others):
    """The sum of `function(x, *others)` over the first axis of all, a number.

    Its gradients, to `x` and to what is trained of the `variables` that it reads, are
    made along with it, so that nothing is kept of a chunk.
    """
    trained = [v for v in variables if v.trainable]

    @tf.custom_gradient
    def total(x, *values):
        cast = [tf.cast(value, x.dtype) for value in values]

        def add(i, value, sums, to_x):
            chunk = x[i]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([chunk, *cast])
                mapping = list(zip(trained, cast, strict=True))
                with keras.StatelessScope(state_mapping=mapping):
                    new = function(chunk, *(other[i] for other in others))
            gradient, *gradients = tape.gradient(
                new, [chunk, *cast], unconnected_gradients="zero"
            )
            pairs = zip(sums, gradients, strict=True)
            sums = [old + tf.cast(more, old.dtype) for old, more in pairs]
            return i + 1, value + new, sums, to_x.write(i, gradient)

        count = tf.shape(x)[0]
        start = (
            0,
            tf.zeros(()),
            [tf.zeros_like(value) for value in values],
            tf.TensorArray(x.dtype, count, element_shape=x.shape[1:]),
        )
        _, value, sums, to_x = tf.while_loop(
            lambda i, *_: i < count, add, start, parallel_iterations=1
        )
        to_x = to_x.stack()

        def gradient(upstream):
            scaled = upstream * tf.cast(to_x, upstream.dtype)
            return tf.cast(scaled, x.dtype), *(upstream * s for s in sums)

        return value, gradient

    return total(x, *(tf.convert_to_tensor(v.value) for v in trained))


def look_up(embedding, ids):
    """The embeddings of ids, in training, with a gradient that is no list of rows."""

    @tf.custom_gradient
    def call(ids):
        def gradient(upstream, variables):
            sums = [
                tf.math.unsorted_segment_sum(
                    tf.cast(upstream, v.dtype), ids, v.shape[0]
                )
                for v in variables
            ]
            return None, sums

        return embedding(ids), gradient

    return call(tf.convert_to_tensor(ids))


def update_adamw(
    variables,
    gradients,
    means,
    squares,
    *,
    step,
    learning_rate,
    beta_1,
    beta_2,
    epsilon,
    weight_decay,
    clip_norm,
):
    """A step of AdamW, in place, by TensorFlow's kernel; see PyTorch's of this name.

    Returns whether it was done: under `tf.distribute` it isn't, since there Keras
    merges the replicas' gradients.
    """
    if tf.distribute.has_strategy():
        return False
    gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
    if clip_norm is not None:
        norm = tf.linalg.global_norm(gradients)
        # what isn't finite shall show in all weights
        scale = 1 / tf.maximum(norm / clip_norm, 1.0) + (norm - norm)
        gradients = [
            gradient * tf.cast(scale, gradient.dtype) for gradient in gradients
        ]
    learning_rate = tf.convert_to_tensor(learning_rate)
    powers = [beta ** tf.cast(step, "float32") for beta in (beta_1, beta_2)]
    everything = zip(variables, gradients, means, squares, strict=True)
    for variable, gradient, mean, square in everything:
        weight, dtype = variable.value, variable.value.dtype
        if weight_decay and weight.shape.rank > 1:
            weight.assign_sub(weight * tf.cast(weight_decay * learning_rate, dtype))
        tf.raw_ops.ResourceApplyAdam(
            var=weight.handle,
            m=mean.value.handle,
            v=square.value.handle,
            beta1_power=tf.cast(powers[0], dtype),
            beta2_power=tf.cast(powers[1], dtype),
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.cast(beta_1, dtype),
            beta2=tf.cast(beta_2, dtype),
            epsilon=tf.cast(epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )
    return True


def write_cache(cache, new, position):
    """Put `new` `(b, k, t, h)` at each row's `position` `(b, t)` of `(b, k, s, h)`."""
    # from `position` and constants alone: a graph makes them once for all layers
    rows = tf.range(tf.shape(position)[0])[:, None, None, None]
    heads = np.arange(cache.shape[1], dtype="int32")[:, None, None]
    places = position[:, None, :, None]
    indices = rows * [1, 0, 0] + heads * [0, 1, 0] + places * [0, 0, 1]  # (b, k, t, 3)
    return tf.tensor_scatter_nd_update(cache, indices, new)


def put_row(batch, row, row_index):
    """Put a row's cache `(1, k, t, h)` into the first places of `(b, k, s, h)`."""
    return keras.ops.slice_update(batch, (row_index, 0, 0, 0), row)
