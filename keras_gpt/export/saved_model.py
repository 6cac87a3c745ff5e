"""Write a language model as a SavedModel for TensorFlow Serving."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_gpt.export.settings import Settings
from keras_gpt.files import atomic_path
from keras_gpt.generation.scoring import score_program

# What a process of its own may fail with; others are bugs, and keep their traceback
_REFUSED = 2
_ERRORS = {error.__name__: error for error in (FileExistsError, ValueError, OSError)}
# Handed over, since this module stands below `LanguageModel`
_PROCESS = """
import sys
from keras_gpt import LanguageModel
from keras_gpt.export.saved_model import answer_request
sys.exit(answer_request(LanguageModel.load, sys.argv[1]))
"""


def export_saved_model(
    lm: Any, path: str | Path, *, next_version: bool, progress: bool, **options
) -> Path:
    """Write a SavedModel; see `LanguageModel.export`.

    On JAX and PyTorch, TensorFlow builds the graph in a process of its own, from the
    weights that `lm.save` writes.

    Args:
        lm: A `LanguageModel`.
        path: The version folder, or with `next_version` the folder above it.
        next_version: Whether to choose the number.
        progress: Whether to say on stderr what is being done.
        **options: As of `Settings.check`.

    Returns:
        The version folder.

    Raises:
        FileExistsError: The version is there already.
        ImportError: TensorFlow or tensorflow-text isn't installed.
        ValueError: An option is out of its range, or no graph can be made of the
            tokenizer.
    """
    settings = Settings.check(lm, **options)
    path = next_version_path(path) if next_version else Path(path)
    if path.exists():
        raise FileExistsError(
            f"{path} is there already, and a server may be reading it. Name another "
            "version, or let next_version=True (--next-version) choose it in "
            f"{path.parent}."
        )
    for package in ("tensorflow", "tensorflow_text", "tensorflow_serving"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"To export needs {package}, whatever the backend. Run: pip install "
                "tensorflow tensorflow-text tensorflow-serving-api"
            )
    if keras.backend.backend() == "tensorflow":
        write_saved_model(lm, path, settings, progress=progress)
    else:
        _write_in_process(lm, path, settings, progress)
    return path


def next_version_path(directory: str | Path) -> Path:
    """The folder for the version after the newest in `directory`, or for version 1."""
    directory = Path(directory)
    found = directory.iterdir() if directory.is_dir() else ()
    return directory / str(
        max([int(p.name) for p in found if _is_version(p)] + [0]) + 1
    )


def _is_version(path):
    return path.name.isascii() and path.name.isdigit()


def write_saved_model(
    lm: Any, path: Path, settings: Settings, *, progress: bool
) -> None:
    """Write the SavedModel, its warm-up requests and its model card, or nothing.

    Args:
        lm: A `LanguageModel` on the TensorFlow backend.
        path: The version folder.
        settings: What is fixed.
        progress: Whether to say on stderr what is being done.
    """
    from rich.console import Console

    from keras_gpt.export.model_card import write_model_card
    from keras_gpt.export.signatures import ServedModel
    from keras_gpt.export.warmup import write_warmup

    console = Console(stderr=True, quiet=not progress, highlight=False)
    with atomic_path(path) as folder:
        with console.status("Building the graph..."):
            served = ServedModel(lm, settings)
            served.save(folder)
        with console.status("Measuring what the stored weights cost..."):
            losses = _compare_losses(lm, served.weights)
        write_warmup(lm.tokenizer, settings, folder, path.parent.name)
        write_model_card(lm, settings, folder, path, losses)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    stored = settings.weights or lm.model.quantization or lm.model.variable_dtype
    console.print(f"{path}: {size / 1e6:,.1f} MB on disk, weights in {stored}.")
    if losses is not None:
        before, after = losses
        console.print(
            f"Loss on a sample of the embedded corpus: {after:.4f} nats per token "
            f"({after - before:+.4f} by storing the weights in {stored})."
        )
    if not _is_version(path):
        console.print(
            "TensorFlow Serving reads only folders whose names are numbers: rename "
            f"{path} to one, such as {path / '1'}."
        )


def _compare_losses(lm, weights, num_tokens=4000):
    """Losses with the model's own weights and the stored ones; `None` if alike."""
    from keras_gpt.data import embedded_sample

    if not weights.expanded or lm.model.quantization is not None:
        return None
    ids = embedded_sample(lm.tokenizer, num_tokens)
    if len(ids) < 2:
        return None
    return tuple(_loss(model, ids) for model in (lm.model, weights.to_model()))


def _loss(model, ids):
    """Mean loss in nats, in short windows and without XLA, which compiles for long."""
    length = min(model.config.context_length, 512)
    windows = [ids[i : i + length + 1] for i in range(0, len(ids) - 1, length)]
    program = score_program(model)
    log_probs = [
        program({}, {"token_ids": tensor[:, :-1], "targets": tensor[:, 1:]})
        for tensor in (keras.ops.convert_to_tensor([window]) for window in windows)
    ]
    return -float(keras.ops.mean(keras.ops.concatenate(log_probs, axis=1)))


def _write_in_process(lm, path, settings, progress):
    """Let a process with the TensorFlow backend write what this one has."""
    with tempfile.TemporaryDirectory() as folder:
        lm.save(folder)
        request = {
            "model": folder,
            "path": str(path),
            "settings": dataclasses.asdict(settings),
            "progress": progress,
        }
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
        environment["KERAS_BACKEND"] = "tensorflow"
        process = subprocess.run(
            [sys.executable, "-c", _PROCESS, json.dumps(request)],
            stdout=subprocess.PIPE,
            stderr=None if progress else subprocess.PIPE,
            env=environment,
            text=True,
            check=False,
        )
    if process.returncode == _REFUSED:
        answer = json.loads(process.stdout.splitlines()[-1])
        raise _ERRORS[answer["error"]](answer["message"])
    if process.returncode != 0:
        raise RuntimeError(
            f"The process that exports ended with status {process.returncode}. "
            f"{process.stderr or ''}"
        )


def answer_request(load: Callable[[str], Any], request: str) -> int:
    """Be the process in which TensorFlow builds the graph.

    Args:
        load: `LanguageModel.load`.
        request: JSON of what `_write_in_process` asks for.

    Returns:
        The exit status. For errors that a user can mend, a line of JSON is printed.
    """
    request = json.loads(request)
    settings = request["settings"]
    for name in ("stop_ids", "batch_sizes"):
        settings[name] = tuple(settings[name])
    try:
        write_saved_model(
            load(request["model"]),
            Path(request["path"]),
            Settings(**settings),
            progress=request["progress"],
        )
    except tuple(_ERRORS.values()) as error:
        kind = next(name for name, kind in _ERRORS.items() if isinstance(error, kind))
        answer = {"error": kind, "message": str(error)}
        sys.stdout.write(f"{json.dumps(answer)}\n")
        return _REFUSED
    return 0
