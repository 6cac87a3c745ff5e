"""GGUF files, written for llama.cpp and what is built on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from keras_gpt.checkpoints.gguf import config as gguf_config
from keras_gpt.checkpoints.gguf.reading import TASKS
from keras_gpt.checkpoints.gguf.tokenizer_settings import tokenizer_settings
from keras_gpt.checkpoints.gguf.turned import is_turned, turn
from keras_gpt.checkpoints.parts import DTYPES, plain_weights
from keras_gpt.config import check_choice
from keras_gpt.files import atomic_path

# What GGUF calls matrices of a dtype
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_gguf(lm: Any, path: str | Path, *, dtype: str = "float16") -> None:
    """Write a model as a GGUF file, whole or not at all.

    Args:
        lm: A `keras_gpt.LanguageModel` with a `BytePairTokenizer`, whose
            architecture llama.cpp has: GPT-2's, or Llama's, Qwen2's or Qwen3's.
        path: The file, an existing one is replaced.
        dtype: `"float16"`, `"bfloat16"` or `"float32"`, of the matrices; vectors are
            float32. llama.cpp's `llama-quantize` makes smaller files from it.

    Raises:
        OSError: The disk is full.
        ValueError: llama.cpp has no such model or tokenizer, the model is quantized or
            has adapters, or a weight is too large for float16.

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
    from gguf import GGUFValueType, GGUFWriter, LlamaFileType

    check_choice("dtype", dtype, DTYPES)
    config = lm.model.config
    architecture = gguf_config.find_architecture(config)
    file_type = f"{'ALL' if dtype == 'float32' else 'MOSTLY'}_{_TYPES[dtype]}"
    settings = {
        "general.name": Path(path).stem,
        "general.file_type": LlamaFileType[file_type].value,
        "general.quantization_version": 2,
        **gguf_config.write_config(config, architecture),
        **tokenizer_settings(lm),
    }
    if lm.tasks:
        settings[TASKS] = json.dumps(lm.tasks)
    if lm.source.get("license"):
        settings["general.license"] = lm.source["license"]
    weights = plain_weights(lm.model)
    with atomic_path(path) as temporary:
        writer = GGUFWriter(temporary, architecture)
        for key, value in settings.items():
            is_integer = type(value) is int
            kind = GGUFValueType.UINT32 if is_integer else GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)
        try:
            _write_tensors(writer, weights, config, architecture, dtype)
        finally:
            writer.close()


def _write_tensors(writer, weights, config, architecture, dtype):
    """Write all, with one tensor at a time in memory."""
    from gguf import GGMLQuantizationType

    def add_info(name, shape):
        # llama.cpp's converter writes all else so, and its kernels expect it
        is_matrix = len(shape) > 1 and name != "position_embd.weight"
        kind = dtype if is_matrix else "float32"
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        gguf_kind = GGMLQuantizationType[_TYPES[kind]]
        writer.add_tensor_info(name, shape, np.dtype(kind), size, gguf_kind)
        return kind

    parts = list(gguf_config.NAMES[architecture].parts(config))
    dtypes = [add_info(part.name, part.shape) for part in parts]
    divisors = gguf_config.rotary_divisors(config)
    if divisors is not None:
        add_info(gguf_config.ROTARY_FREQUENCIES, divisors.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for part, kind in zip(parts, dtypes, strict=True):
        values = part.take(weights, kind)
        if is_turned(part.name, architecture):
            values = turn(part.name, values, config, to_gguf=True)
        writer.write_tensor_data(values)
    if divisors is not None:
        writer.write_tensor_data(divisors)
