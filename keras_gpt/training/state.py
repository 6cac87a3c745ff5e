"""The state of a run on disk, from which it goes on as if never stopped."""

import zipfile
from pathlib import Path

import numpy as np
from keras import ops

from keras_gpt.files import atomic_path
from keras_gpt.training.lora import has_lora


def save_state(model, path: str | Path, step: int) -> None:
    """Write weights, optimizer state, dropout seeds and the step, whole or not at all.

    Of a model with adapters the frozen weights are left out.

    Args:
        model: A compiled, built `GPT`, or a `PreferenceModel`.
        path: The `.npz` file.
        step: Optimizer steps done.
    """
    arrays = {"step": np.array(step)}
    for key, variable in _variables(model):
        value = ops.convert_to_numpy(variable)
        # NumPy files have no bfloat16
        wide = str(variable.dtype) == "bfloat16"
        arrays[key] = value.astype("float32") if wide else value
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


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
    try:
        # opened here: NumPy leaves a truncated file open
        with Path(path).open("rb") as file, _load_arrays(file) as arrays:
            variables = _variables(model)
            names = {key for key, _ in variables}
            if names != set(arrays.files) - {"step"} or any(
                tuple(variable.shape) != arrays[key].shape
                for key, variable in variables
            ):
                raise ValueError(
                    f"{path} is the state of another model or optimizer. Start the "
                    "run with the arguments that it had, or in a new folder."
                )
            for key, variable in variables:
                variable.assign(arrays[key])
            return int(arrays["step"])
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(
            f"{path} can't be read ({error}). It may be truncated: remove it and start "
            "the run anew."
        ) from error


def _load_arrays(file):
    try:
        return np.load(file)
    except ValueError as error:  # NumPy takes any other file for a pickle
        raise OSError("not a NumPy archive") from error


def _variables(model):
    """What a step writes, by number: Keras counts its names up."""
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    if has_lora(model):
        # the base, which no step changes; the seeds of dropout are no weights
        frozen = {id(weight) for weight in model.non_trainable_weights}
        variables = [v for v in variables if id(v) not in frozen]
    variables += model.optimizer.variables
    return [(f"{i:05d}", v) for i, v in enumerate(variables)]
