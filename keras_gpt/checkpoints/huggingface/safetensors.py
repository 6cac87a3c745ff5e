"""The safetensors files of a folder: which tensors there are, and where."""

import json
from pathlib import Path

from keras_gpt.checkpoints.stored import StoredTensor
from keras_gpt.files import read_json

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Look at all tensors of a folder, in one file or in shards with an index.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or the weights are pickled.
    """
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    if (folder / _SINGLE).is_file():
        return read_file(folder / _SINGLE)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise ValueError(
            f"{folder} has its weights in pickle files only (.bin), which can run any "
            "program while they are read. Use a safetensors version of the model."
        )
    raise FileNotFoundError(f"There are no weights in {folder}: {_SINGLE} is missing.")


def _read_shards(folder):
    content = read_json(folder / INDEX)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise ValueError(f"{folder / INDEX} lacks 'weight_map'. Download it again.")
    shards = {}
    for name, file in weight_map.items():
        is_name = isinstance(file, str) and Path(file).name == file
        if not is_name or not file.endswith(".safetensors"):
            raise ValueError(
                f"{folder / INDEX} names a file outside its folder, {file!r}. Don't "
                "use this model."
            )
        path = folder / file
        if not path.is_file():
            raise FileNotFoundError(f"The shard {path} is missing. Download it again.")
        if file not in shards:
            shards[file] = read_file(path)
        if name not in shards[file]:
            raise ValueError(f"{path} lacks {name}, which its index names.")
    return {name: shards[file][name] for name, file in weight_map.items()}


def read_file(path: Path) -> dict[str, StoredTensor]:
    """Look at all tensors of a file.

    Raises:
        ValueError: It is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # checks that the header has no gaps and fits the file
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} isn't a whole safetensors file ({error}). Download it again."
        ) from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, tensor in header.items():
        offset = 8 + size + tensor["data_offsets"][0]
        shape, kind = tuple(tensor["shape"]), tensor["dtype"]
        tensors[name] = StoredTensor(name, path, offset, shape, kind)
    return tensors
