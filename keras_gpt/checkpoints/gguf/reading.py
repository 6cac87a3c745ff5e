"""GGUF files, read."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from keras_gpt.checkpoints.checkpoint import Checkpoint
from keras_gpt.checkpoints.gguf import tokenizer
from keras_gpt.checkpoints.gguf.config import NAMES, read_config
from keras_gpt.checkpoints.gguf.file import read_gguf_file
from keras_gpt.checkpoints.gguf.turned import is_turned, turn

TASKS = "keras_gpt.tasks"
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
        config = read_config(settings, tensors)
        architecture = settings["general.architecture"]

        def read_rows(name):
            if is_turned(name, architecture):
                values = np.concatenate(list(tensors[name].read_rows()))
                return [turn(name, values, config, to_gguf=False)]
            return tensors[name].read_rows()

        return Checkpoint(
            config=config,
            names=NAMES[architecture],
            shapes={name: tensor.shape for name, tensor in tensors.items()},
            read_rows=read_rows,
            tokenizer=tokenizer.tokenizer_from_gguf(settings),
            chat_template=tokenizer.chat_template_from_gguf(settings),
            stop_ids=_read_stop_ids(settings, config),
            generation_defaults=_read_generation_defaults(settings),
            source=_describe(path, settings, tensors),
            tasks=json.loads(str(settings.get(TASKS, "{}"))),
        )
    except ValueError as error:
        reason = " ".join(str(error).split())  # it can quote a token with line ends
        raise ValueError(f"{path} can't be loaded. {reason}") from error


def _read_stop_ids(settings, config):
    ids = [settings.get(key) for key in tokenizer.STOP_IDS]
    valid = [i for i in ids if isinstance(i, int) and 0 <= i < config.vocab_size]
    return tuple(dict.fromkeys(valid))


def _read_generation_defaults(settings):
    defaults = {}
    for theirs, ours in _CONTROLS.items():
        value = settings.get(f"general.sampling.{theirs}")
        if isinstance(value, int | float) and value:
            defaults[ours] = value
    return {"top_k": None, **defaults} if defaults else {}


def _describe(path, settings, tensors):
    kinds = Counter(t.kind for t in tensors.values() if len(t.shape) > 1)
    source = {
        "format": "GGUF",
        "file": path.name,
        "architecture": settings["general.architecture"],
        "name": settings.get("general.name"),
        "license": settings.get("general.license"),
        "quantization": kinds.most_common(1)[0][0] if kinds else None,
    }
    return {key: value for key, value in source.items() if value}
