"""A GPT's weights and their shapes, and the tensors that other formats make of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import ml_dtypes  # noqa: F401  # NumPy then knows bfloat16
import numpy as np
from keras import ops

from keras_gpt.config import GPTConfig
from keras_gpt.model import GPT

DTYPES = ("float32", "float16", "bfloat16")  # that can be written


@dataclass(frozen=True)
class Part:
    """A tensor of another format: a weight of ours, or some columns of one.

    Args:
        name: What the format calls it.
        path: Path of the weight.
        columns: Which of the weight's last axis.
        shape: Of the tensor.
        is_transposed: Whether the tensor is, against the weight.
    """

    name: str
    path: str
    columns: slice
    shape: tuple[int, ...]
    is_transposed: bool

    def take(self, weights: dict[str, Any], dtype: Any) -> np.ndarray:
        """The tensor's values, from the weights by path; zeros where there is none.

        Raises:
            ValueError: A value is too large for float16.
        """
        if self.path not in weights:
            return np.zeros(self.shape, dtype)
        values = ops.convert_to_numpy(weights[self.path])[..., self.columns]
        values = values.T if self.is_transposed else values
        try:
            with np.errstate(over="raise"):
                return np.ascontiguousarray(values.astype(dtype, copy=False))
        except FloatingPointError as error:
            raise ValueError(
                f"{self.name} has values beyond 65504, the largest of float16. Use "
                "dtype='bfloat16' or 'float32'."
            ) from error


def weight_shapes(
    config: GPTConfig,
) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Path and shape of each weight of a GPT, and the widths of its parts.

    The parts, side by side in the last axis, are what other formats may keep apart:
    query, key and value; gate and up.
    """
    width, size = config.embedding_dimension, config.vocab_size
    heads = config.num_heads * config.head_dimension
    query_key_value = (heads, *[config.kv_heads * config.head_dimension] * 2)
    up = (config.hidden_dimension,) * (2 if config.activation == "swiglu" else 1)
    has_bias, has_first_bias = config.use_bias, config.has_query_key_value_bias
    # rows, widths of the parts, whether there is a bias
    matrices = {
        "attention/query_key_value": (width, query_key_value, has_first_bias),
        "attention/output_projection": (heads, (width,), has_bias),
        "feed_forward/up_projection": (width, up, has_bias),
        "feed_forward/down_projection": (up[0], (width,), has_bias),
    }
    scales = ("gamma", "beta") if has_bias else ("gamma",)
    if config.normalization == "rms_norm":
        scales = ("scale",)
    yield "embedding/tokens/embeddings", (size, width), (width,)
    if not config.tie_embeddings:
        yield "embedding/tokens/reverse_embeddings", (width, size), (size,)
    if config.position_embedding == "learned":
        yield "embedding/positions/embeddings", (config.context_length, width), (width,)
    for scale in scales:
        yield f"final_norm/{scale}", (width,), (width,)
    for i in range(config.num_layers):
        for norm, scale in product(("attention_norm", "feed_forward_norm"), scales):
            yield f"block_{i}/{norm}/{scale}", (width,), (width,)
        for name, (rows, widths, is_biased) in matrices.items():
            yield f"block_{i}/{name}/kernel", (rows, sum(widths)), widths
            if is_biased:
                yield f"block_{i}/{name}/bias", (sum(widths),), widths
        for name in ("query_norm", "key_norm") if config.qk_norm else ():
            shape = (config.head_dimension,)
            yield f"block_{i}/attention/{name}/scale", shape, shape


def plain_weights(model: GPT) -> dict[str, Any]:
    """The weights of a model by path, all of which a format has a place for.

    Raises:
        ValueError: The model is quantized or has adapters.
    """
    weights = {variable.path: variable for variable in model.weights}
    plain = {path for path, _, _ in weight_shapes(model.config)}
    other = sorted(weights.keys() ^ plain)
    if other or model.quantization is not None:
        raise ValueError(
            "The model must be neither quantized nor with adapters; merge these first. "
            f"Received: {', '.join(other[:1]) or model.quantization}."
        )
    return weights
