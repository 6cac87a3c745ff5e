"""GGUF, the format of llama.cpp: one file with weights, settings and tokenizer."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_gpt.checkpoints.checkpoint import Checkpoint
from keras_gpt.checkpoints.gguf_config import read_config
from keras_gpt.checkpoints.gguf_file import TensorInfo, read_gguf_file
from keras_gpt.checkpoints.gguf_tokenizer import (
    STOP_IDS,
    chat_template_from_gguf,
    tokenizer_from_gguf,
)
from keras_gpt.config import GPTConfig

_ROTATED = re.compile(r"blk\.\d+\.attn_([qk])\.(weight|bias)")
_CONTROLS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def read_gguf(path: str | Path) -> Checkpoint:
    """Look at a GGUF file of the architecture llama, gpt2, qwen2 or qwen3.

    Only its header is read; each tensor is read and dequantized when it is asked for.

    Args:
        path: The file, or the first part of a split one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or of an architecture or with a setting that
            isn't supported.
    """
    path = Path(path)
    settings, tensors = read_gguf_file(path)
    try:
        config, names = read_config(settings, tensors)
        tokenizer = tokenizer_from_gguf(settings)
        chat_template = chat_template_from_gguf(settings)
    except ValueError as error:
        reason = " ".join(str(error).split())  # it can quote a token with line ends
        raise ValueError(f"{path} can't be loaded. {reason}") from error
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{path} has {tokenizer.vocab_size} tokens, but embeddings of "
            f"{config.vocab_size}. Download it again."
        )
    is_llama = settings["general.architecture"] == "llama"

    def read(name: str) -> np.ndarray:
        values = tensors[name].read()
        rotated = _ROTATED.fullmatch(name) if is_llama else None
        return _undo_interleaving(values, config, rotated[1]) if rotated else values

    return Checkpoint(
        config=config,
        names=names,
        read=read,
        available=tensors,
        tokenizer=tokenizer,
        chat_template=chat_template,
        stop_ids=_stop_ids(settings, config),
        generation_defaults=_generation_defaults(settings),
        source=_source(path, settings, tensors),
    )


def _undo_interleaving(values: np.ndarray, config: GPTConfig, kind: str) -> np.ndarray:
    """Put the pairs that rotate together half a head apart, as ours are.

    llama.cpp's converter puts them side by side in models that it calls llama.
    """
    num_heads = config.num_heads if kind == "q" else config.num_kv_heads
    pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _stop_ids(settings: Mapping[str, Any], config: GPTConfig) -> tuple[int, ...]:
    ids = [settings.get(key) for key in STOP_IDS]
    valid = [i for i in ids if isinstance(i, int) and 0 <= i < config.vocab_size]
    return tuple(dict.fromkeys(valid))


def _generation_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        ours: settings.get(f"general.sampling.{theirs}")
        for theirs, ours in _CONTROLS.items()
    }
    defaults = {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and value
    }
    return {"top_k": None, **defaults} if defaults else {}


def _source(
    path: Path, settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> dict[str, Any]:
    types = Counter(info.type.name for info in tensors.values() if len(info.shape) > 1)
    source = {
        "format": "GGUF",
        "file": path.name,
        "architecture": settings["general.architecture"],
        "name": settings.get("general.name"),
        "license": settings.get("general.license"),
        "quantization": types.most_common(1)[0][0] if types else None,
    }
    return {key: value for key, value in source.items() if value}
