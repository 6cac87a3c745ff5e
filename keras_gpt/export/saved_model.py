"""Write a language model as a SavedModel for TensorFlow Serving."""

import contextlib
import errno
import os
from pathlib import Path

import keras
import numpy as np

from keras_gpt.export.process import call_on_backend
from keras_gpt.export.settings import Settings
from keras_gpt.files import atomic_path
from keras_gpt.generation.scoring import score_program
from keras_gpt.installed import require
from keras_gpt.language_model import LanguageModel


def export_saved_model(
    lm: LanguageModel,
    path: str | Path,
    *,
    next_version: bool,
    progress: bool,
    **options,
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
    packages = ("tensorflow", "tensorflow_text", "tensorflow_serving")
    require("tensorflow", "A SavedModel, whatever the backend,", *packages)
    if keras.backend.backend() == "tensorflow":
        write_saved_model(lm, path, settings, progress)
    else:
        call_on_backend(
            "tensorflow",
            __name__,
            write_saved_model.__name__,
            *(lm, path, settings, progress),
            progress=progress,
        )
    return path


def describe_size(path: Path, stored: str) -> str:
    """What was written, and what the weights are stored in."""
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return f"{path}: {size / 1e6:,.1f} MB on disk, weights in {stored}."


def describe_losses(before: float, after: float, stored: str) -> str:
    """What storing the weights costs."""
    return (
        f"Loss on a sample of the embedded corpus: {after:.4f} nats per token "
        f"({after - before:+.4f} by storing the weights in {stored})."
    )


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
    lm: LanguageModel, path: Path, settings: Settings, progress: bool
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
    with atomic_path(path) as folder, _as_python_raises():
        with console.status("Building the graph..."):
            served = ServedModel(lm, settings)
            served.save(folder)
        with console.status("Measuring what the stored weights cost..."):
            losses = _compare_losses(lm, served.weights)
        write_warmup(lm.tokenizer, settings, folder, path.parent.name)
        write_model_card(lm, settings, folder, path, served.weights.kind, losses)
    console.print(describe_size(path, served.weights.kind))
    if losses is not None:
        console.print(describe_losses(*losses, served.weights.kind))
    if not _is_version(path):
        console.print(
            "TensorFlow Serving reads only folders whose names are numbers: rename "
            f"{path} to one, such as {path / '1'}."
        )


@contextlib.contextmanager
def _as_python_raises():
    """Let TensorFlow's error of a full disk be the `OSError` that Python has for it."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if os.strerror(code) in error.message:
                raise OSError(code, os.strerror(code)) from error
        raise


def _compare_losses(lm, weights, num_tokens=4000):
    """Losses with the model's own weights and the stored ones; `None` if alike."""
    from keras_gpt.data import embedded_sample

    if not weights.expanded or lm.model.quantization is not None:
        return None
    ids = embedded_sample(lm.tokenizer, num_tokens)
    if len(ids) < 2:
        return None
    before = _loss(lm.model, ids)
    with weights.read():
        return before, _loss(weights.model, ids)


def _loss(model, ids):
    """Mean loss in nats, in short windows and without XLA, which compiles for long."""
    length = min(model.config.context_length, 512, len(ids) - 1)
    num_windows = (len(ids) - 1) // length
    starts = np.arange(num_windows)[:, None] * length
    windows = np.array(ids)[starts + np.arange(length + 1)]
    program = score_program(model)
    log_probs = [
        program({}, {"token_ids": rows[:, :-1], "targets": rows[:, 1:]})
        for rows in np.array_split(windows, -(-windows.size // 1024))
    ]
    return -float(keras.ops.mean(keras.ops.concatenate(log_probs)))
