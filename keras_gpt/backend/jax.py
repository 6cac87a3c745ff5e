"""The backend functions on JAX."""

# Axes: b batch, k key-value head, t new position, s cache position, h head dimension

import math

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_gpt.backend import xla
from keras_gpt.backend.xla import BYTES_PER_LOGIT, dropout, softmax  # noqa: F401

_ALIGNMENT = 64  # bytes, of which an array's address must be a multiple
_BLOCK_SIZE = 16  # inputs, in an int8 product: the fastest of 8, 16, 32 and 64


def count_kept_bytes(config, rows, length, itemsize, remat):
    """As of `xla`, which on CPUs multiplies in float32."""
    del itemsize
    return xla.count_kept_bytes(config, rows, length, 4, remat)


def fused_attention(query, key, value, mask=None):
    """Causal attention of `(b, n, t, h)` to `(b, k, t, h)`, cuDNN's where it serves.

    `None` on CPUs, for which XLA has no kernel.
    """
    if mask is not None or jax.default_backend() == "cpu":
        return None
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    context = keras.ops.dot_product_attention(query, key, value, is_causal=True)
    return context.transpose(0, 2, 1, 3)


def apply_to_rows(function, x):
    """`function(x)`, which multiplies `x` `(..., input)` by a matrix.

    The matrix's gradient sums over rows. XLA on CPUs has a fast product for that of
    two matrices as they lie in memory; where it may, it turns the upstream gradient
    or makes it inside of the product's loop, at up to six times the cost.
    """
    if x.ndim <= 2:
        return function(x)
    y = _keep_gradient_whole(function(x.reshape(-1, x.shape[-1])))
    return y.reshape(*x.shape[:-1], y.shape[-1])


@jax.custom_gradient
def _keep_gradient_whole(y):
    """`y`, whose upstream gradient XLA makes before it is used."""
    return y, jax.lax.optimization_barrier


def gelu(x):
    """The exact GELU, by `erf`, a fifth of the time of JAX's own by `erfc`."""
    y = x.astype("float32")
    return (0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


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


def bucket(size):
    """The size to pad to, so that few shapes are compiled: a power of two."""
    return 1 << (size - 1).bit_length()


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


def in_numpy(*tensors):
    """`None`: XLA's tensors aren't in NumPy's memory."""
    del tensors


def matmul_int8(x, kernel, scale, is_transposed=False):
    """`x` `(..., input)` times int8 `kernel` `(input, output)` over `scale`.

    `is_transposed`: the kernel is `(output, input)`. Of a single row, what is generated
    by, the product is written so that XLA reads the int8 weights themselves: others it
    writes out as floats first.
    """
    kernel, scale = (keras.ops.convert_to_tensor(value) for value in (kernel, scale))
    fits = is_transposed or kernel.shape[0] % _BLOCK_SIZE == 0
    is_row = fits and x.size == x.shape[-1]
    if is_row:  # without the barrier XLA makes the floats once, before the loop
        x, kernel = jax.lax.optimization_barrier((x, kernel))
    if is_row and not is_transposed:
        y = _multiply_row(x, kernel)
    else:
        kernel = kernel.T if is_transposed else kernel
        y = jnp.matmul(x, kernel.astype(x.dtype))
    return y / scale.astype(x.dtype)


def _multiply_row(x, kernel):
    """The terms of a block one by one: XLA vectorizes no sum with a cast in it."""
    row = x.reshape(-1, _BLOCK_SIZE, 1)
    blocks = kernel.reshape(-1, _BLOCK_SIZE, kernel.shape[1])
    sums = sum(row[:, j] * blocks[:, j].astype(x.dtype) for j in range(_BLOCK_SIZE))
    return (jnp.ones(len(sums), x.dtype) @ sums).reshape(*x.shape[:-1], -1)


def record_step(function):
    """The function itself, which is compiled as a part of the loop."""
    return function


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
