"""The backend functions on PyTorch."""

# Axes: b batch, k key-value head, t new position, s cache position, h head dimension

import functools
import threading

import keras
import torch

from keras_gpt.backend.torch_steps import record_step  # noqa: F401

_running = threading.Lock()


def fused_attention(query, key, value, mask=None):
    """Causal attention of `(b, n, t, h)` to `(b, k, t, h)` by PyTorch's kernel."""
    if mask is not None:
        return None
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
    ones = _ones(kernel.shape[1])
    product = torch._weight_int8pack_mm(rows, _laid_out(kernel).t(), ones)
    return (product / scale).to(x.dtype).reshape(*x.shape[:-1], -1)


@functools.cache
def _ones(size):
    return torch.ones(size, dtype=torch.bfloat16)


def _laid_out(kernel):
    """The kernel, whose memory is put column by column if it isn't yet."""
    if not kernel.t().is_contiguous():
        with torch.inference_mode(False):
            kernel.data = kernel.t().contiguous().t()
    return kernel


def with_dense_gradient(variable):
    """The variable itself: the gradient of a look-up is dense on PyTorch."""
    return variable


def write_cache(cache, new, position):
    """Put `new` `(b, k, t, h)` at each row's `position` `(b, t)` of `(b, k, s, h)`."""
    rows = torch.arange(cache.shape[0], device=cache.device)[:, None]
    cache[rows, :, position] = new.transpose(1, 2)
    return cache
