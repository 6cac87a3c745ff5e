"""A model's weights alone, in Keras's HDF5 format, written and read safely.

The checksum of a file stands behind its end, where HDF5 doesn't look: Keras alone reads
such a file too, and files without one are read as they are.
"""

import os
from pathlib import Path

import numpy as np

from keras_gpt.files import atomic_path, checksum

_MARK = b"keras_gpt crc-32"  # 8 digits follow


def save_weights(model, path: str | Path) -> None:
    """Write the weights alone, whole or not at all."""
    with atomic_path(path) as temporary:
        _check_room(temporary, model)
        _without_optimizer(model).save_weights(temporary)
        value = checksum(temporary)
        with temporary.open("ab") as file:
            file.write(_MARK + value.encode())


def _without_optimizer(model):
    """The same model for Keras to save: it would write the optimizer's variables too.

    They are twice the size of the weights. The model itself stays as it is: another
    thread may be training it.
    """
    other = object.__new__(type(model))
    other.__dict__.update(model.__dict__, optimizer=None)
    return other


def _check_room(path, model):
    """Raise `OSError` unless the weights will fit on the disk.

    HDF5 doesn't survive a disk that fills up while it writes: Python then crashes.
    """
    size = sum(
        int(np.prod(v.shape)) * (4 if "float32" in v.dtype else 2)
        for v in model.weights
    )
    size += 2**14 * (len(model.weights) + 1)  # its names and tables
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            for start in range(0, size, 2**20):
                file.write(bytes(min(2**20, size - start)))
    path.unlink()


def load_weights(model, path: str | Path) -> None:
    """Read what `save_weights` wrote, on any backend.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or of another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The weights {path} are missing.")
    _check_sum(path)
    try:
        # Keras passes over what a file lacks or has too much
        fits = _weight_shapes(path) == sorted(tuple(w.shape) for w in model.weights)
        if fits:
            model.load_weights(path)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} can't be read ({error}). It may be truncated: copy it again."
        ) from error
    if not fits:
        raise ValueError(
            f"{path} holds the weights of another architecture than the model's. "
            "Build the GPT with the configuration that they were trained with."
        )


def _check_sum(path):
    """Raise `ValueError` where the file isn't the one that was written."""
    num_bytes = max(path.stat().st_size - len(_MARK) - 8, 0)
    with path.open("rb") as file:
        file.seek(num_bytes)
        end = file.read()
    if end.startswith(_MARK) and end[-8:] != checksum(path, num_bytes).encode():
        raise ValueError(
            f"{path} is damaged: its checksum is another. Copy it again, or take an "
            "earlier save."
        )


def _weight_shapes(path):
    """Shapes of all arrays in an HDF5 file, sorted."""
    import h5py

    shapes = []

    def visit(_, item):
        if isinstance(item, h5py.Dataset):
            shapes.append(item.shape)

    with h5py.File(path) as file:
        file.visititems(visit)
    return sorted(shapes)
