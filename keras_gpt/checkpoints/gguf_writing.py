"""Writing GGUF files, for llama.cpp and what is built on it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np

from keras_gpt.checkpoints.checkpoint import (
    cast_weight,
    part_widths,
    plain_weights,
    weight_paths,
)
from keras_gpt.checkpoints.gguf_config import LLAMA3, NAMES
from keras_gpt.checkpoints.gguf_tokenizer_writing import tokenizer_settings
from keras_gpt.config import GPTConfig, default_feed_forward_dimension, suggest
from keras_gpt.files import atomic_path
from keras_gpt.layers.rotary import rotary_frequencies

_DTYPES = {
    "float32": (np.float32, "F32", "ALL_F32"),
    "float16": (np.float16, "F16", "MOSTLY_F16"),
    "bfloat16": (ml_dtypes.bfloat16, "BF16", "MOSTLY_BF16"),
}


def write_gguf(lm: Any, path: str | Path, *, dtype: str = "float16") -> None:
    """Write a model as a GGUF file, whole or not at all.

    Args:
        lm: A `keras_gpt.LanguageModel` with a `BytePairTokenizer`, whose
            architecture llama.cpp has: GPT-2's, or Llama's, Qwen2's or Qwen3's.
        path: The file, an existing one is replaced.
        dtype: `"float16"`, `"bfloat16"` or `"float32"`, of the matrices; vectors are
            float32. llama.cpp's `llama-quantize` makes smaller files from it.

    Raises:
        ValueError: llama.cpp has no such model or tokenizer, or a weight is too large
            for float16.

    Example:

    >>> import keras_gpt
    >>> from keras_gpt.checkpoints import read_gguf, write_gguf
    >>> texts = ["the cat sat", "the cat ran"]
    >>> tokenizer = keras_gpt.BytePairTokenizer.train(texts, 300, progress=False)
    >>> config = keras_gpt.GPTConfig.from_preset("quickstart", num_layers=1)
    >>> lm = keras_gpt.LanguageModel(keras_gpt.GPT(config), tokenizer)
    >>> write_gguf(lm, "tiny.gguf")
    >>> read_gguf("tiny.gguf").source["quantization"]
    'F16'
    """
    from gguf import GGUFWriter, LlamaFileType

    if dtype not in _DTYPES:
        raise ValueError(f"Unknown `dtype`. {suggest('dtype', dtype, _DTYPES)}")
    config = lm.model.config
    architecture = _architecture(config)
    settings = {
        "general.name": Path(path).stem,
        "general.file_type": LlamaFileType[_DTYPES[dtype][2]].value,
        "general.quantization_version": 2,
        **_settings(config, architecture),
        **tokenizer_settings(
            lm.tokenizer, lm.chat_template, lm.stop_ids, config.vocab_size
        ),
    }
    if lm.source.get("license"):
        settings["general.license"] = lm.source["license"]
    slots = list(_slots(lm.model, architecture))
    with atomic_path(path) as temporary:
        writer = GGUFWriter(temporary, architecture)
        for key, value in settings.items():
            _add_setting(writer, key, value)
        try:
            _write_tensors(writer, slots, dtype)
        finally:
            writer.close()


def _write_tensors(writer, slots, dtype):
    """Write all, with one tensor at a time in memory."""
    from gguf import GGMLQuantizationType

    for slot in slots:
        kind, name, _ = _DTYPES[slot.dtype(dtype)]
        size = math.prod(slot.shape) * np.dtype(kind).itemsize
        writer.add_tensor_info(
            slot.name, slot.shape, kind, size, GGMLQuantizationType[name]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for slot in slots:
        kind = _DTYPES[slot.dtype(dtype)][0]
        values = cast_weight(slot.name, slot.values(), kind)
        writer.write_tensor_data(np.ascontiguousarray(values))


def _architecture(config: GPTConfig) -> str:
    """What llama.cpp calls the architecture.

    Raises:
        ValueError: It has none that computes the same.
    """
    none = (None, False)
    if config.normalization == "layer_norm":
        name = "gpt2"
        wanted = {
            "position_embedding": ("learned",),
            "activation": ("gelu_tanh",),
            "use_bias": (True,),
            "query_key_value_bias": (None, True),
            "num_kv_heads": (None, config.num_heads),
            "attention_dimension": (None, config.embedding_dimension),
            "qk_norm": none,
        }
    else:
        name = "qwen3" if config.qk_norm else "llama"
        name = "qwen2" if config.query_key_value_bias else name
        wanted = {
            "position_embedding": ("rotary",),
            "activation": ("swiglu",),
            "use_bias": none,
        }
    if name == "qwen2":
        wanted["qk_norm"] = none
        wanted["attention_dimension"] = (None, config.embedding_dimension)
    if config.sliding_window and config.sliding_window < config.context_length:
        wanted["sliding_window"] = (None,)
    scaling = config.rotary_scaling
    if scaling and scaling["type"] == "llama3":
        fits = name == "llama" and LLAMA3.items() <= scaling.items()
        wanted["rotary_scaling"] = (scaling if fits else None,)
    for field, values in wanted.items():
        if getattr(config, field) not in values:
            raise ValueError(
                f"llama.cpp has no model like this one: with normalization="
                f"{config.normalization!r} it wants {field}={values[-1]!r}. Received: "
                f"{field}={getattr(config, field)!r}. Write Hugging Face's format, or "
                "train with that setting."
            )
    return name


def _settings(config, architecture):
    """The settings that `gguf_config.read_config` reads."""
    epsilon = "norm_rms_epsilon" if architecture != "gpt2" else "norm_epsilon"
    hidden = config.feed_forward_dimension or default_feed_forward_dimension(
        config.embedding_dimension, config.activation
    )
    settings = {
        "context_length": config.context_length,
        "embedding_length": config.embedding_dimension,
        "block_count": config.num_layers,
        "feed_forward_length": hidden,
        "attention.head_count": config.num_heads,
        f"attention.layer_{epsilon}": float(config.norm_epsilon),
        "vocab_size": config.vocab_size,
    }
    if architecture != "gpt2":
        settings |= {
            "attention.head_count_kv": config.num_kv_heads or config.num_heads,
            "attention.key_length": config.head_dimension,
            "attention.value_length": config.head_dimension,
            "rope.dimension_count": config.head_dimension,
            "rope.freq_base": float(config.rotary_base),
        }
    scaling = config.rotary_scaling or {"type": None}
    if scaling["type"] == "linear":
        settings["rope.scaling.type"] = "linear"
        settings["rope.scaling.factor"] = float(scaling["factor"])
    elif scaling["type"] == "llama3":
        settings["rope.scaling.original_context_length"] = int(
            scaling["original_context_length"]
        )
    return {f"{architecture}.{name}": value for name, value in settings.items()}


def _add_setting(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


@dataclass
class _Slot:
    """One tensor of the file: a weight, or some columns of one.

    Args:
        name: llama.cpp's.
        weight: The variable, or an array.
        columns: Which of its last axis.
        is_transposed: Whether the tensor is.
        num_heads: In how many heads the pairs that rotate together are put side by
            side, `None` for none.
    """

    name: str
    weight: Any
    columns: slice
    is_transposed: bool = False
    num_heads: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        *others, _ = self.weight.shape
        shape = (*others, self.columns.stop - self.columns.start)
        return shape[::-1] if self.is_transposed else shape

    def dtype(self, wanted: str) -> str:
        # llama.cpp's converter writes these so, and its kernels expect it
        is_matrix = len(self.shape) > 1 and self.name != "position_embd.weight"
        return wanted if is_matrix else "float32"

    def values(self) -> np.ndarray:
        weight = self.weight
        if not isinstance(weight, np.ndarray):
            weight = keras.ops.convert_to_numpy(keras.ops.cast(weight, "float32"))
        values = weight[..., self.columns]
        values = values.T if self.is_transposed else values
        if self.num_heads is None:
            return values
        halves = values.reshape(self.num_heads, 2, -1, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)


def _slots(model, architecture) -> Iterator[_Slot]:
    config, names = model.config, NAMES[architecture]
    num_kv_heads = config.num_kv_heads or config.num_heads
    rotated = {"attn_q": config.num_heads, "attn_k": num_kv_heads}
    weights = plain_weights(model)
    for path in weight_paths(config):
        theirs = names.find(path)
        ends = np.cumsum(part_widths(config, weights[path].shape[-1], len(theirs)))
        for name, start, end in zip(theirs, [0, *ends], ends, strict=False):
            yield _Slot(
                name,
                weights[path],
                slice(int(start), int(end)),
                names.is_transposed(path),
                rotated.get(name.split(".")[-2]) if architecture == "llama" else None,
            )
    if config.rotary_scaling and config.rotary_scaling["type"] == "llama3":
        width, base = config.head_dimension, config.rotary_base
        divisors = rotary_frequencies(width, base) / rotary_frequencies(
            width, base, config.rotary_scaling
        )
        yield _Slot("rope_freqs.weight", divisors, slice(0, width // 2))
