"""The backend functions on OpenVINO, of which a graph is made that is exported.

Keras's OpenVINO backend is given places in a graph for tensors, and adds to it. What is
not here belongs to training, or to running a program that Keras has compiled.
"""

# Axes: b batch, n query head, k key-value head, t new position, s cache position,
#       h head dimension

import keras
import numpy as np
from openvino import opset13


def fused_attention(query, key, value, mask=None):
    """Attention of `(b, n, t, h)` to `(b, k, s, h)`, for which there is a kernel.

    `mask` are booleans that broadcast to `(b, 1, t, s)`; without them it is causal.
    """
    heads = query.shape[1] // key.shape[1]
    parts = [query, *(_repeat(part, heads) for part in (key, value))]
    parts += [] if mask is None else [mask]
    outputs = [part.output for part in parts]
    node = opset13.scaled_dot_product_attention(*outputs, causal=mask is None)
    return keras.ops.convert_to_tensor(node.output(0))


def _repeat(x, times):
    """Each head of `(b, k, s, h)` several times, as the kernel's pattern has it."""
    if times == 1:
        return x
    _, k, _, h = x.shape
    node = opset13.unsqueeze(x.output, np.int64(2))
    shape = np.array([1, 1, times, 1, 1])
    node = opset13.broadcast(node, shape, broadcast_spec="BIDIRECTIONAL")
    node = opset13.reshape(node, np.array([0, k * times, -1, h]), True)
    return keras.ops.convert_to_tensor(node.output(0))


def multiply(x, kernel, bias=None, is_transposed=False):
    """`x` times `kernel`, or times that turned, plus `bias`."""
    kernel = keras.ops.swapaxes(kernel, -1, -2) if is_transposed else kernel
    y = keras.ops.matmul(x, kernel)
    return y if bias is None else y + bias


def gelu(x):
    """The exact GELU."""
    return keras.ops.gelu(x, approximate=False)


def assign(variable, chunks):
    """Give a variable the values of NumPy arrays that hold some rows each."""
    variable.assign(np.concatenate(list(chunks)))


def zeros(shape, dtype):
    """Zeros, to be replaced."""
    return np.zeros(shape, dtype)


def write_cache(cache, new, position):
    """`new` `(b, k, t, h)` behind the `(b, k, s, h)` that the cache holds."""
    del position  # which the order in the cache is
    return keras.ops.concatenate([cache, new], axis=2)
