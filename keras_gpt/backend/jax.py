"""The backend functions on JAX."""

# Axes: b batch, k key-value head, t new position, s cache position, h head dimension

import math

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_gpt.backend import xla
from keras_gpt.backend.xla import (  # noqa: F401
    BYTES_PER_LOGIT,
    bucket,
    dropout,
    in_numpy,
    logsumexp,
    matmul_int4,
    record_step,
)

_ALIGNMENT = 64  # bytes, of which an array's address must be a multiple


def count_kept_bytes(config, rows, length, itemsize, remat):
    """As of `xla`; in float32 softmax keeps what it makes alone."""
    copies = 1 if itemsize == 4 else 3
    return xla.count_kept_bytes(config, rows, length, itemsize, remat, copies)


def fused_attention(query, key, value, mask=None):
    """Causal attention of `(b, n, t, h)` to `(b, k, t, h)`, cuDNN's where it serves.

    `None` on CPUs, for which XLA has no kernel.
    """
    if mask is not None or jax.default_backend() == "cpu":
        return None
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    context = keras.ops.dot_product_attention(query, key, value, is_causal=True)
    return context.transpose(0, 2, 1, 3)


def multiply(x, kernel, bias=None, is_transposed=False):
    """`x` times `kernel`, or times that turned, plus `bias`.

    A matrix's gradient sums over rows. XLA on CPUs has a fast product for that of
    two matrices as they lie in memory; where it may, it turns the upstream gradient
    or makes it inside of the product's loop, at up to six times the cost.
    """
    rows = x.reshape(-1, x.shape[-1]) if kernel.ndim == 2 else x
    if x.dtype == "bfloat16" and rows.shape[-2] > 1 and _is_one_cpu():
        y = _multiply_in_bfloat16(rows, kernel, is_transposed)
        y = y if bias is None else _add_bias(y, bias)
    else:
        y = _multiply_narrow(rows, kernel, is_transposed)
        y = y if bias is None else y + bias
        y = _keep_gradient_whole(y) if kernel.ndim == 2 < x.ndim else y
    return y.reshape(*x.shape[:-1], y.shape[-1])


@jax.custom_gradient
def _keep_gradient_whole(y):
    """`y`, whose upstream gradient XLA makes before it is used."""
    return y, jax.lax.optimization_barrier


def _is_one_cpu():
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _multiply_in_bfloat16(x, kernel, is_transposed):
    """`x` `(..., m, k)` times `kernel` `(..., k, n)`, or `(..., n, k)`.

    XLA on CPUs has a product of bfloat16 whose result is float32, twice as fast as that
    in float32, where the first matrix lies in memory row by row. Of others it makes
    float32. Barriers keep it from moving a turn into such a product once it has chosen:
    that may give one that it can't compute.
    """

    @jax.custom_gradient
    def call(x, kernel):
        def gradient(upstream):
            upstream = jax.lax.optimization_barrier(upstream)
            to_x = _product(upstream, kernel, not is_transposed)
            left, right = (upstream, x) if is_transposed else (x, upstream)
            return to_x, _product(_turn(left), right, False)

        return _product(x, kernel, is_transposed), gradient

    return call(x, kernel)


@jax.custom_gradient
def _add_bias(y, bias):
    """`y + bias`, whose gradient sums in float32, fast where bfloat16 is not."""

    def gradient(upstream):
        return upstream, upstream.astype("float32").sum(0).astype(bias.dtype)

    return y + bias, gradient


def _product(x, y, is_transposed):
    axes = (x.ndim - 1,), (y.ndim - 1 if is_transposed else y.ndim - 2,)
    batch = tuple(range(x.ndim - 2))
    product = jax.lax.dot_general(
        x, y, (axes, (batch, batch)), preferred_element_type="float32"
    )
    return jax.lax.optimization_barrier(product.astype(x.dtype))


def _turn(x):
    """The matrices turned, also in memory."""
    *batch, m, n = x.shape
    flat = jax.lax.optimization_barrier(x.swapaxes(-1, -2).reshape(-1))
    return flat.reshape(*batch, n, m)


def gelu(x):
    """The exact GELU, by `erf`, a fifth of the time of JAX's own by `erfc`."""
    y = x.astype("float32")
    return (0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


@jax.custom_gradient
def softmax(x):
    """Over the last axis, in the type of `x`, computed in float32.

    The sum in its gradient is a product: XLA on CPUs takes five times as long to add up
    what it has yet to multiply.
    """
    y = xla.softmax(x)

    def gradient(upstream):
        to_y, weights = upstream.astype("float32"), y.astype("float32")
        total = jnp.einsum("...s,...s->...", to_y, weights)[..., None]
        return (weights * (to_y - total)).astype(x.dtype)

    return y, gradient


def default_jit_compile(dtype):
    """Whether `fit` should compile: always."""
    del dtype
    return True


update_adamw = None  # XLA makes few passes of Keras's


def device_memory():
    """Bytes used at most so far on an accelerator, and all; `None` on a CPU."""
    counts = jax.local_devices()[0].memory_stats()
    return counts and (counts["peak_bytes_in_use"], counts["bytes_limit"])


def zeros(shape, dtype):
    """Zeros that take no memory until they are replaced."""
    return jax.device_put(_allocate(np.zeros, shape, dtype))


def assign(variable, chunks):
    """Give a variable the values of NumPy arrays that hold some rows each."""
    values = _allocate(np.empty, variable.shape, variable.dtype)
    start = 0
    for rows in chunks:
        values[start : start + len(rows)] = rows
        start += len(rows)
    spread = keras.distribution.distribution()
    if spread is None:
        variable.assign(jax.device_put(values))
    else:  # each part straight to where it belongs
        layout = spread.get_variable_layout(variable)
        variable.assign(keras.distribution.distribute_tensor(values, layout))


def _allocate(make, shape, dtype):
    """An array that `make` made, which JAX takes as it is, without a copy."""
    size = math.prod(shape) * jnp.dtype(dtype).itemsize
    buffer = make(size + _ALIGNMENT, "uint8")
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(jnp.dtype(dtype)).reshape(shape)


def compile_function(function, variables):
    """Compile `function(state, inputs)`, which reads `variables`.

    Both may hold arrays of NumPy, which need no turning into JAX's before.
    """

    def stateless(state, values, inputs):
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function(state, inputs)

    compiled = jax.jit(stateless, donate_argnums=0)
    return lambda state, inputs: compiled(state, [v.value for v in variables], inputs)


def matmul_int8(x, kernel, scale, is_transposed=False):
    """`x` `(..., input)` times int8 `kernel` `(input, output)` over `scale`.

    `is_transposed`: the kernel is `(output, input)`. For a single row, by which a text
    is generated, the int8 weights are read themselves; for others there are floats.
    """
    kernel, scale = (keras.ops.convert_to_tensor(value) for value in (kernel, scale))
    if x.size > x.shape[-1]:
        is_tied = jax.default_backend() == "cpu" and not is_transposed
        kernel = (xla.tie(kernel, x) if is_tied else kernel).astype(x.dtype)
    return multiply(x, kernel, None, is_transposed) / scale.astype(x.dtype)


def _multiply_narrow(x, kernel, is_transposed):
    """`x` times a kernel that may be narrower than floats, which are not written out.

    That is so for one row, on CPUs. Without the barrier XLA makes the floats once,
    before a loop that generates; of bfloat16 also with `xla.tie`.
    """
    is_narrow = kernel.ndim == 2 and kernel.dtype in ("int8", "bfloat16")
    if is_narrow and len(x) == 1 and jax.default_backend() == "cpu":
        x, kernel = jax.lax.optimization_barrier((x, kernel))
        if not is_transposed:
            sums = xla.sum_blocks(x, kernel, _as_float)
            return (jnp.ones((1, len(sums)), "float32") @ sums).astype(x.dtype)
    kernel = kernel.swapaxes(-1, -2) if is_transposed else kernel
    return jnp.matmul(x, kernel.astype(x.dtype))


def _as_float(x):
    """In float32: bfloat16 as integers, for XLA's own cast takes a quarter longer."""
    if x.dtype != "bfloat16":
        return x.astype("float32")
    bits = jax.lax.bitcast_convert_type(x, "uint16").astype("uint32") << 16
    return jax.lax.bitcast_convert_type(bits, "float32")


def rematerialize(function, layer, x):
    """`function(x)`, which calls the layer; what is inside is not kept for gradients.

    They make it anew, with the same dropout. XLA on CPUs sees through the barriers of
    `jax.checkpoint`, and keeps each product rather than to multiply again.
    """
    counts = [v for v in layer.variables if "int" in v.dtype]  # of seeds
    others = [v for v in layer.variables if "int" not in v.dtype]
    before = [v.value for v in counts]

    def pure(values, x):
        mapping = list(zip(counts + others, before + values, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            return function(x), [scope.get_current_value(v) for v in counts]

    @jax.custom_gradient
    def run(values, x):
        def gradient(upstream):
            again = x + 0 * upstream[0]  # the same, but not that XLA could know
            _, pull_back, _ = jax.vjp(pure, values, again, has_aux=True)
            return pull_back(upstream[0])

        return pure(values, x), gradient

    y, new = run([v.value for v in others], x)
    for count, value in zip(counts, new, strict=True):
        count.assign(value)
    return y


def sum_over_chunks(function, variables, x, others):
    """The sum of `function(x, *others)` over the first axis of all, a number.

    Its gradients, to `x` and to what is trained of the `variables` that it reads, are
    made along with it, so that nothing is kept of a chunk.
    """
    trained = [v for v in variables if v.trainable]
    fixed = [(v, v.value) for v in variables if not v.trainable]

    def of_chunk(values, x, others):
        mapping = fixed + list(zip(trained, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function(x, *others)

    @jax.custom_gradient
    def total(values, x):
        cast = [value.astype(x.dtype) for value in values]

        def add(sums, chunk):
            value, (new, to_x) = jax.value_and_grad(of_chunk, (0, 1))(cast, *chunk)
            return jax.tree.map(jnp.add, sums, (value, new)), to_x

        start = (jnp.zeros(()), [jnp.zeros_like(value) for value in values])
        (value, sums), to_x = jax.lax.scan(add, start, (x, others))
        return value, lambda upstream: (
            [upstream * gradient for gradient in sums],
            (upstream * to_x).astype(x.dtype),
        )

    return total([v.value for v in trained], x)


def look_up(embedding, ids):
    """The embeddings of ids, in training; their gradient is dense."""
    return embedding(ids)


def write_cache(cache, new, position):
    """Put `new` `(b, k, t, h)` at each row's `position` `(b, t)` of `(b, k, s, h)`.

    Head by head: what XLA writes of one row as a slice, it copies four times before.
    """
    rows = jnp.arange(cache.shape[0])[:, None, None]
    heads = jnp.arange(cache.shape[1])[:, None]
    return cache.at[rows, heads, position[:, None]].set(new)


def put_row(batch, row, row_index):
    """Put a row's cache `(1, k, t, h)` into the first places of `(b, k, s, h)`."""
    return jax.lax.dynamic_update_slice(batch, row, (row_index, 0, 0, 0))
