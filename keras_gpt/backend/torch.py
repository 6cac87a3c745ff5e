"""The backend functions on PyTorch."""

# Axes: b batch, k key-value head, t new position, s cache position, h head dimension

import threading

import keras
import torch

_STEPS_BEFORE_RECORDING = 16
_running = threading.Lock()


def fused_attention(query, key, value):
    """Causal attention of `(b, n, t, h)` to `(b, k, t, h)` by PyTorch's kernel."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
    )


def apply_to_rows(function, x):
    """`function(x)`, which multiplies `x` `(..., input)` by a matrix."""
    return function(x)


def default_jit_compile(dtype):
    """Whether `fit` should compile: no, torch.compile takes a minute on a CPU."""
    del dtype
    return False


def zeros(shape, dtype):
    """Zeros, to be replaced."""
    return keras.ops.zeros(shape, dtype)


def assign(variable, chunks):
    """Give a variable the values of NumPy arrays that hold some rows each."""
    start = 0
    for rows in chunks:
        stop = start + len(rows)
        if rows.dtype.name == "bfloat16":  # PyTorch doesn't know NumPy's
            rows = torch.from_numpy(rows.view("int16")).view(torch.bfloat16)
        with torch.no_grad():
            variable.value[start:stop].copy_(torch.as_tensor(rows))
        start = stop


def bucket(size):
    """The size to pad to: its own, since nothing is compiled."""
    return size


def compile_function(function, variables):
    """Run `function(state, inputs)` without recording gradients, one at a time.

    While `make_fx` records, it replaces how PyTorch calls any module, in all threads.
    """
    del variables

    def run(state, inputs):
        with _running, torch.inference_mode():
            return function(state, inputs)

    return run


def matmul_int8(x, kernel, scale):
    """`x` `(..., input)` times int8 `kernel` `(input, output)` over `scale`.

    On a CPU, and where no gradient is wanted, by a kernel that reads the int8 weights
    themselves; it multiplies in bfloat16 and adds in float32.
    """
    kernel, scale = (keras.ops.convert_to_tensor(value) for value in (kernel, scale))
    # the kernel reads beyond other lengths: it was seen to crash
    is_read_whole = kernel.shape[0] % 32 == 0
    if x.device.type != "cpu" or x.requires_grad or not is_read_whole:
        return torch.matmul(x, kernel.to(x.dtype)) / scale.to(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
    ones = torch.ones(kernel.shape[1], dtype=torch.bfloat16)
    product = torch._weight_int8pack_mm(rows, _laid_out(kernel).t(), ones)
    return (product / scale).to(x.dtype).reshape(*x.shape[:-1], -1)


def _laid_out(kernel):
    """The kernel, whose memory is put column by column if it isn't yet."""
    if not kernel.t().is_contiguous():
        with torch.inference_mode(False):
            kernel.data = kernel.t().contiguous().t()
    return kernel


def record_step(function):
    """`function(*trees)` as a recording of its tensor operations, replayed each time.

    Half of the time of a step on a CPU is Python running Keras's layers. To record
    takes as long as some dozens of steps, so the first ones of each shape just run.
    """
    counts, recordings = {}, {}

    def step(*trees):
        leaves = keras.tree.flatten(trees)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if shapes not in recordings:
            counts[shapes] = counts.get(shapes, 0) + 1
            if counts[shapes] <= _STEPS_BEFORE_RECORDING:
                return function(*trees)
            recordings[shapes] = _record(function, trees, leaves)
        graph, result = recordings[shapes]
        return keras.tree.pack_sequence_as(result, graph(*leaves))

    return step


def _record(function, trees, leaves):
    """The graph from leaves to leaves, and the structure of what it returns."""
    from torch.fx.experimental.proxy_tensor import make_fx

    structure = None

    def flat(*leaves):
        nonlocal structure
        result = function(*keras.tree.pack_sequence_as(trees, leaves))
        structure = keras.tree.map_structure(lambda leaf: 0, result)
        return keras.tree.flatten(result)

    return make_fx(flat)(*leaves), structure


def with_dense_gradient(variable):
    """The variable itself: the gradient of a look-up is dense on PyTorch."""
    return variable


def write_cache(cache, new, position):
    """Put `new` `(b, k, t, h)` at each row's `position` `(b, t)` of `(b, k, s, h)`."""
    rows = torch.arange(cache.shape[0], device=cache.device)[:, None]
    cache[rows, :, position] = new.transpose(1, 2)
    return cache
