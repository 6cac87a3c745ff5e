"""What every format is read into, and a model built from it, tensor by tensor."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from keras_gpt.checkpoints.names import Names
from keras_gpt.config import GPTConfig
from keras_gpt.layers.initial import given_values
from keras_gpt.model import GPT
from keras_gpt.tokenizers import ChatTemplate, Tokenizer


@dataclass
class Checkpoint:
    """A pretrained model that has been looked at but not yet loaded.

    Args:
        config: The architecture.
        names: What the format calls each weight.
        read: From one of those names to its array.
        available: All names of arrays in the checkpoint.
        tokenizer: Its tokenizer, `None` if it has none that keras_gpt reads.
        chat_template: How it wants messages written, `None` if it doesn't say.
        stop_ids: Token ids that end its answers.
        generation_defaults: Controls of generation that its makers recommend.
        source: Where it came from, by what name, under which licence.
    """

    config: GPTConfig
    names: Names
    read: Callable[[str], np.ndarray]
    available: Iterable[str]
    tokenizer: Tokenizer | None = None
    chat_template: ChatTemplate | None = None
    stop_ids: tuple[int, ...] = ()
    generation_defaults: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

    def build_model(self, dtype: str | None = None) -> GPT:
        """Make the model, reading one tensor at a time.

        Each large matrix is read when its layer is built, so that memory never holds
        much more than the weights that are finished.

        Args:
            dtype: A dtype or dtype policy. Defaults to Keras's global one.

        Raises:
            ValueError: A tensor is missing, has another shape, or has no place in the
                architecture.
        """
        self._check_names()
        large = filter(_starts_at_random, weight_paths(self.config))
        with given_values(map(self._reader, large)):
            model = GPT(self.config, dtype=dtype)
        weights = {variable.path: variable for variable in model.variables}
        for path in weight_paths(self.config):
            if not _starts_at_random(path):
                shape, dtype = tuple(weights[path].shape), weights[path].dtype
                weights[path].assign(self._reader(path)(shape, dtype))
        return model

    def _check_names(self):
        wanted = {
            name for path in weight_paths(self.config) for name in self.names.find(path)
        }
        available = set(self.available)
        missing = sorted(wanted - available)
        if missing:
            raise ValueError(
                f"The checkpoint lacks {_list(missing)}. Download it again; if that "
                "doesn't help, it isn't of the architecture that it claims."
            )
        unknown = sorted(
            name for name in available - wanted if not self.names.ignores(name)
        )
        if unknown:
            raise ValueError(
                f"The checkpoint has {_list(unknown)}, for which the architecture has "
                "no place, so its outputs would be wrong. keras_gpt doesn't support "
                "this model."
            )

    def _reader(self, path):
        """A function from shape and dtype to the weight that is `path` of ours."""
        theirs = self.names.find(path)
        is_transposed = self.names.is_transposed(path)

        def read(shape, dtype):
            if dtype == "bfloat16":
                dtype = ml_dtypes.bfloat16
            try:
                weight = np.empty(shape, dtype)
            except (MemoryError, ValueError) as error:  # numpy's limit is the latter
                raise ValueError(
                    "The architecture in the checkpoint's description wants "
                    f"{theirs[0]} of a shape that fits no memory, {tuple(shape)}."
                ) from error
            start = 0
            for name in theirs:
                part = self.read(name)
                part = part.T if is_transposed else part
                end = start + part.shape[-1]
                # one tensor is the weight, several are its columns side by side
                slot = weight if len(theirs) == 1 else weight[..., start:end]
                if slot.shape != part.shape:
                    raise ValueError(
                        f"{name} has the shape {_shape_of(part, is_transposed)}; the "
                        "architecture in the checkpoint's description wants "
                        f"{_shape_of(slot, is_transposed)}. The files don't belong "
                        "together."
                    )
                slot[...] = part
                start = end
            if start != shape[-1] and len(theirs) > 1:
                raise ValueError(
                    f"{', '.join(theirs)} have {start} columns together; the "
                    f"architecture wants {shape[-1]}."
                )
            return weight

        return read


def _shape_of(array, is_transposed):
    return array.shape[::-1] if is_transposed else array.shape


def weight_paths(config: GPTConfig) -> Iterator[str]:
    """Paths of a GPT's weights; the large ones in the order in which it builds them."""
    suffixes = ("scale",)
    if config.normalization == "layer_norm":
        suffixes = ("gamma", "beta") if config.use_bias else ("gamma",)

    def norm(name):
        return [f"{name}/{suffix}" for suffix in suffixes]

    def dense(name, has_bias=config.use_bias):
        return [f"{name}/kernel", *([f"{name}/bias"] if has_bias else [])]

    yield "embedding/tokens/embeddings"
    if not config.tie_embeddings:
        yield "embedding/tokens/reverse_embeddings"
    if config.position_embedding == "learned":
        yield "embedding/positions/embeddings"
    has_bias = config.query_key_value_bias
    has_bias = config.use_bias if has_bias is None else has_bias
    for i in range(config.num_layers):
        yield from norm(f"block_{i}/attention_norm")
        yield from dense(f"block_{i}/attention/query_key_value", has_bias)
        yield from dense(f"block_{i}/attention/output_projection")
        if config.qk_norm:
            yield f"block_{i}/attention/query_norm/scale"
            yield f"block_{i}/attention/key_norm/scale"
        yield from norm(f"block_{i}/feed_forward_norm")
        yield from dense(f"block_{i}/feed_forward/up_projection")
        yield from dense(f"block_{i}/feed_forward/down_projection")
    yield from norm("final_norm")


def part_widths(config: GPTConfig, width: int, count: int) -> list[int]:
    """Columns of each of the tensors that other formats make of one weight.

    Args:
        config: The architecture.
        width: Columns of the weight.
        count: Number of tensors: 3 are query, key and value, others are alike.
    """
    shares = [1] * count
    if count == 3:
        kv_heads = config.num_kv_heads or config.num_heads
        shares = [config.num_heads, kv_heads, kv_heads]
    return [share * (width // sum(shares)) for share in shares]


def plain_weights(model: GPT) -> dict[str, Any]:
    """The weights of a model by path, all of which a format has a place for.

    Raises:
        ValueError: The model is quantized or has adapters.
    """
    weights = {variable.path: variable for variable in model.weights}
    other = sorted(weights.keys() ^ set(weight_paths(model.config)))
    if other or model.quantization is not None:
        raise ValueError(
            "The model must have the weights of a plain GPT, neither quantized nor "
            f"with adapters. Received: {', '.join(other[:1]) or model.quantization}. "
            "Merge adapters with `merge_adapter`, or load the model unquantized."
        )
    return weights


def cast_weight(name: str, values: np.ndarray, dtype: Any) -> np.ndarray:
    """Cast what is to be written.

    Raises:
        ValueError: A value is too large for float16; the name is in the message.
    """
    try:
        with np.errstate(over="raise"):
            return values.astype(dtype, copy=False)
    except FloatingPointError as error:
        raise ValueError(
            f"{name} has values beyond 65504, the largest of float16. Use "
            "dtype='bfloat16' or 'float32'."
        ) from error


def _starts_at_random(path):
    return path.endswith(("embeddings", "kernel"))


def _list(names):
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
