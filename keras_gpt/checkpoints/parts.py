"""A GPT's weights and their shapes, and the tensors that other formats make of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_gpt.config import GPTConfig
from keras_gpt.model import GPT


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
    width, hidden = config.embedding_dimension, config.hidden_dimension
    heads, kv_heads = (
        number * config.head_dimension for number in (config.num_heads, config.kv_heads)
    )
    gated = 2 if config.activation == "swiglu" else 1
    norms = {"rms_norm": ("scale",), "layer_norm": ("gamma", "beta")}
    norms = norms[config.normalization][: 2 if config.use_bias else 1]
    # input, widths of the output's parts, whether there is a bias
    linear = {
        "attention/query_key_value": (
            width,
            (heads, kv_heads, kv_heads),
            config.has_query_key_value_bias,
        ),
        "attention/output_projection": (heads, (width,), config.use_bias),
        "feed_forward/up_projection": (width, (hidden,) * gated, config.use_bias),
        "feed_forward/down_projection": (hidden, (width,), config.use_bias),
    }
    vectors = [
        f"{norm}/{s}" for norm in ("attention_norm", "feed_forward_norm") for s in norms
    ]
    yield "embedding/tokens/embeddings", (config.vocab_size, width), (width,)
    if not config.tie_embeddings:
        size = config.vocab_size
        yield "embedding/tokens/reverse_embeddings", (width, size), (size,)
    if config.position_embedding == "learned":
        shape = (config.context_length, width)
        yield "embedding/positions/embeddings", shape, (width,)
    for suffix in norms:
        yield f"final_norm/{suffix}", (width,), (width,)
    for i in range(config.num_layers):
        for name in vectors:
            yield f"block_{i}/{name}", (width,), (width,)
        for name, (rows, widths, has_bias) in linear.items():
            yield f"block_{i}/{name}/kernel", (rows, sum(widths)), widths
            if has_bias:
                yield f"block_{i}/{name}/bias", (sum(widths),), widths
        if config.qk_norm:
            size = config.head_dimension
            for name in ("query_norm", "key_norm"):
                yield f"block_{i}/attention/{name}/scale", (size,), (size,)


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
            "The model must have the weights of a plain GPT, neither quantized nor "
            f"with adapters. Received: {', '.join(other[:1]) or model.quantization}. "
            "Merge adapters with `merge_adapter`, or load the model unquantized."
        )
    return weights
