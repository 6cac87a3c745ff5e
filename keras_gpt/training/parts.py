"""Parts of a state that lie on several hosts, each of which writes its own: Orbax."""

import json
from pathlib import Path

import keras

from keras_gpt.backend import hosts
from keras_gpt.files import checksum
from keras_gpt.installed import require


def import_orbax():
    """Orbax, of the extra `orbax`.

    Raises:
        ImportError: It isn't there.
    """
    require("orbax", "To save weights that are cut over several hosts", "orbax")
    import orbax.checkpoint as ocp

    return ocp


def check_savable(model: keras.Model) -> None:
    """Raise `ImportError` where a model's state needs Orbax, and that isn't there."""
    if any(hosts.is_cut(variable.value) for variable in model.variables):
        import_orbax()


def save_parts(folder: Path, variables: dict[str, keras.Variable]) -> str:
    """Write values, each process its own parts, whole or not at all.

    Args:
        folder: Replaced where there is one.
        variables: By name.

    Returns:
        What `load_parts` compares the files with, in the first process.
    """
    with import_orbax().StandardCheckpointer() as checkpointer:
        values = {name: variable.value for name, variable in variables.items()}
        checkpointer.save(folder.absolute(), values, force=True)
    if hosts.place()[0]:
        return ""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return json.dumps({str(p.relative_to(folder)): checksum(p) for p in files})


def load_parts(
    folder: Path, variables: dict[str, keras.Variable], checksums: str
) -> None:
    """Read what `save_parts` wrote, on any number of devices.

    Raises:
        ImportError: Orbax isn't there.
        ValueError: The backend isn't JAX, the files are damaged, or they hold others.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(f"{folder} was written on several hosts: KERAS_BACKEND=jax")
    is_whole = hosts.place()[0] > 0 or all(
        (folder / name).is_file() and checksum(folder / name) == value
        for name, value in json.loads(checksums).items()
    )
    if not hosts.tell_all(is_whole).all():
        raise ValueError(f"{folder} is damaged")
    with import_orbax().StandardCheckpointer() as checkpointer:
        targets = {name: variable.value for name, variable in variables.items()}
        values = checkpointer.restore(folder.absolute(), targets)
    for name, variable in variables.items():
        variable.assign(values[name])
