"""The state of a run on disk, from which it goes on as if never stopped."""

import contextlib
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
from keras import ops

from keras_gpt.backend import hosts
from keras_gpt.files import atomic_path
from keras_gpt.training.accumulation import TOKEN_COUNT
from keras_gpt.training.lora import has_lora
from keras_gpt.training.parts import load_parts, save_parts

_PARTS = "parts"  # of arrays, and the folders that they lie in

# what NumPy raises for a damaged archive
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, LookupError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)


def save_state(
    model, path: str | Path, step: int, previous: str | Path | None = None
) -> None:
    """Write weights, optimizer state, dropout seeds and the step, whole or not at all.

    Of a model with adapters the frozen weights are left out. The means that `fit` takes
    over an epoch are written too, for `load_metrics`. Of several processes all call it,
    and the first one writes; what is cut over them each writes its part of, by Orbax,
    in a folder beside the file.

    Args:
        model: A compiled, built `GPT`, or a `PreferenceModel`.
        path: The `.npz` file.
        step: Optimizer steps done.
        previous: Where the file that was there is kept. Defaults to `None`: nowhere.
    """
    path = Path(path)
    arrays, parts = {"step": np.array(step)}, {}
    for key, variable in [*_variables(model), *_metrics(model)]:
        if hosts.is_cut(variable.value):
            parts[key] = variable
            arrays[key] = np.zeros((0, *variable.shape))  # in its place
            continue
        value = ops.convert_to_numpy(variable)
        # NumPy files have no bfloat16
        wide = str(variable.dtype) == "bfloat16"
        arrays[key] = value.astype("float32") if wide else value
    if parts:
        arrays[_PARTS] = np.array(save_parts(_folder(path, step), parts))
    if hosts.place()[0] == 0:
        with atomic_path(path, previous) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
        if previous is not None:
            _remove_other_parts(path, Path(previous))
    hosts.wait_for_all()  # it is there


def load_state(model, path: str | Path) -> int:
    """Put back what `save_state` wrote.

    Args:
        model: The same architecture, compiled alike; the same weights where they are
            frozen.
        path: The `.npz` file.

    Returns:
        The number of steps done.

    Raises:
        ValueError: The file is damaged or of another model or optimizer.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    variables = _variables(model)
    try:
        # opened here: NumPy leaves a truncated file open
        with Path(path).open("rb") as file, _checked(file) as arrays:
            others = ("step", "metric", _PARTS)
            found = [n for n in arrays.files if not n.startswith(others)]
            if len(found) < len(variables) and variables[-1][1].name == TOKEN_COUNT:
                variables.pop()  # 0 between steps; it was not always there
            step = int(arrays["step"])
            fits, parts = found == [key for key, _ in variables], {}
            for key, variable in variables if fits else ():
                shape, written = tuple(variable.shape), arrays[key].shape
                if written == (0, *shape):
                    parts[key] = variable
                elif written != shape:
                    fits = False
            if fits and parts:
                load_parts(_folder(path, step), parts, str(arrays[_PARTS]))
            for key, variable in variables if fits else ():
                if key not in parts:
                    variable.assign(arrays[key])
    except DAMAGED as error:
        raise ValueError(
            f"{path} can't be read ({error}). It may be truncated: start the run anew "
            "in another folder."
        ) from error
    if not fits:
        raise ValueError(
            f"{path} is the state of another model or optimizer. Start the run with "
            "the arguments that it had, or in a new folder."
        )
    return step


def _folder(path, step):
    return Path(path).with_name(f"{_PARTS}-{step}")


def _remove_other_parts(*paths):
    """Remove what lies in parts of states that these don't follow any more."""
    kept = []
    for path in paths:
        with contextlib.suppress(*DAMAGED), path.open("rb") as file:
            kept.append(_folder(path, int(np.load(file)["step"])))
    for folder in paths[0].parent.glob(f"{_PARTS}-*"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _checked(file):
    """The arrays of a file of which each checksum was compared.

    NumPy reads as much of an array as its header says, and so not to the end, where the
    checksum is compared, when a damaged header says less.
    """
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.comment:  # NumPy writes none: it hides other entries
                raise zipfile.BadZipFile(f"{entry.filename} has a comment")
            with archive.open(entry) as member:
                while member.read(2**20):
                    pass
    file.seek(0)
    return np.load(file)


def load_metrics(model, path: str | Path) -> None:
    """Put back the means over an epoch during which `save_state` was called.

    Args:
        model: What `load_state` was called with, at the beginning of an epoch.
        path: The `.npz` file.
    """
    with np.load(path) as arrays:
        for key, variable in _metrics(model):
            variable.assign(arrays[key])


def _variables(model):
    """What a step writes, by number: Keras counts its names up."""
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    if has_lora(model):
        # the base, which no step changes; the seeds of dropout are no weights
        frozen = {id(weight) for weight in model.non_trainable_weights}
        variables = [v for v in variables if id(v) not in frozen]
    variables += model.optimizer.variables
    return [(f"{i:05d}", v) for i, v in enumerate(variables)]


def _metrics(model):
    variables = enumerate(model.metrics_variables)
    return [(f"metric_{i:02d}", variable) for i, variable in variables]
