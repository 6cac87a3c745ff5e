"""The order of rows in the queries and keys of models that GGUF calls llama.

llama.cpp's converter puts those side by side that rotate together; ours are half a head
apart.
"""

import re

import numpy as np

from keras_gpt.config import GPTConfig

_TURNED = re.compile(r"blk\.\d+\.attn_([qk])\.(weight|bias)")


def is_turned(name: str, architecture: str) -> bool:
    """Whether the rows of a tensor have another order than ours."""
    return architecture == "llama" and _TURNED.fullmatch(name) is not None


def from_gguf_order(name: str, values: np.ndarray, config: GPTConfig) -> np.ndarray:
    """Put the rows of a tensor, `(output, ...)`, in our order."""
    return _reorder(name, values, config, (-1, 2))


def to_gguf_order(name: str, values: np.ndarray, config: GPTConfig) -> np.ndarray:
    """Undo `from_gguf_order`."""
    return _reorder(name, values, config, (2, -1))


def _reorder(name, values, config, halves):
    is_query = _TURNED.fullmatch(name)[1] == "q"
    num_heads = config.num_heads if is_query else config.kv_heads
    rows = values.reshape(num_heads, *halves, *values.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)
