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


def turn(
    name: str, values: np.ndarray, config: GPTConfig, *, to_gguf: bool
) -> np.ndarray:
    """Put the rows of such a tensor, `(output, ...)`, in llama.cpp's order or ours."""
    is_query = _TURNED.fullmatch(name)[1] == "q"
    num_heads = config.num_heads if is_query else config.kv_heads
    halves = (2, -1) if to_gguf else (-1, 2)
    rows = values.reshape(num_heads, *halves, *values.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)
