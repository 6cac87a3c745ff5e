"""A language model on disk: `config.json`, the weights, the tokenizer."""

from pathlib import Path
from typing import Any

from keras_gpt import checkpoints, tokenizers, training
from keras_gpt.config import GPTConfig
from keras_gpt.files import atomic_update, read_json, write_json
from keras_gpt.model import GPT
from keras_gpt.openvino_model import OpenVINOModel
from keras_gpt.tokenizers import ChatTemplate
from keras_gpt.weights import load_weights, save_weights

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.weights.h5"
TOKENIZER_FOLDER = "tokenizer"
ABOUT_ADAPTER = ("base", "tokenizer_fingerprint", "tasks")
_FORMAT = 1


def save(lm, directory: str | Path) -> None:
    """Write a language model; see `LanguageModel.save`."""
    check_merged(lm.model, may_choose=True)
    with atomic_update(directory) as temporary:
        lm.tokenizer.save(temporary / TOKENIZER_FOLDER)
        save_weights(lm.model, temporary / WEIGHTS_FILE)
        write_json(temporary / CONFIG_FILE, describe(lm))


def describe(lm) -> dict[str, Any]:
    """What `config.json` holds, ready for JSON."""
    adapters = {}
    if lm.adapters:
        adapters["adapters"] = {
            "ranks": dict(lm.model.adapters.ranks),
            "targets": lm.model.adapters.targets,
            "uses": {name: _use_to_json(use) for name, use in lm.adapters.items()},
        }
    return {
        "format": _FORMAT,
        "model": lm.model.config.to_dict(),
        "dtype": lm.model.dtype_policy.name,
        "quantization": lm.model.quantization,
        "tokenizer_fingerprint": lm.tokenizer.fingerprint,
        "generation_defaults": lm.generation_defaults,
        "source": lm.source,
        **describe_use(lm),
        **adapters,
    }


def load_parts(directory: Path, dtype: str | None) -> dict[str, Any]:
    """Read what `save` wrote, as the arguments of `LanguageModel`.

    Raises:
        FileNotFoundError: There is no model in the folder.
        ValueError: A file is damaged or doesn't fit the others.
    """
    description = _read_description(directory)
    tokenizer = tokenizers.load(directory / TOKENIZER_FOLDER)
    if tokenizer.fingerprint != description["tokenizer_fingerprint"]:
        raise ValueError(
            f"The tokenizer in {directory} isn't the one that the model was saved "
            "with. Put the original back."
        )
    return {
        "model": _load_model(directory, description, dtype),
        "tokenizer": tokenizer,
        "generation_defaults": description.get("generation_defaults"),
        "source": description.get("source"),
        "adapters": {
            name: read_use(use)
            for name, use in description.get("adapters", {}).get("uses", {}).items()
        },
        **read_use(description),
    }


def _load_model(directory, description, dtype):
    config = GPTConfig.from_dict(description["model"])
    if "openvino" in description:
        if dtype not in (None, "float32"):
            raise ValueError(
                f"OpenVINO runs {directory} in float32. Received: dtype={dtype}. Leave "
                "it out."
            )
        return OpenVINOModel(directory, config, **description["openvino"])
    model = GPT(config, dtype=dtype or description["dtype"], initial_weights=False)
    if description.get("quantization") is not None:
        model.quantize(description["quantization"])
    if "adapters" in description:
        about = description["adapters"]
        model.add_adapters(about["ranks"], about["targets"])
    load_weights(model, directory / WEIGHTS_FILE)
    return model


def describe_use(lm) -> dict[str, Any]:
    """How a model is asked and ends its text, ready for JSON."""
    names = ("chat_template", "stop_ids", "tasks")
    return _use_to_json({name: getattr(lm, name) for name in names})


def _use_to_json(use):
    return {
        name: value.to_dict() if isinstance(value, ChatTemplate) else value
        for name, value in use.items()
    }


def read_use(description: dict[str, Any]) -> dict[str, Any]:
    """Attributes of `LanguageModel` that `describe_use` wrote; old files lack some."""
    kinds = {
        "chat_template": lambda template: template and ChatTemplate(**template),
        "stop_ids": tuple,
        "tasks": dict,
    }
    return {
        name: kind(description[name])
        for name, kind in kinds.items()
        if name in description
    }


def _read_description(directory):
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no model in {directory}: {CONFIG_FILE} is missing. Train "
            "one with `keras-gpt train`, or name the folder of a run."
        )
    description = read_json(path)
    if not isinstance(description, dict):
        raise ValueError(f"{path} doesn't describe a model.")
    if description.get("format") != _FORMAT:
        raise ValueError(
            f"{path} has format {description.get('format')!r}; this keras_gpt reads "
            f"format {_FORMAT}. Install the version that wrote it."
        )
    for name in ("model", "dtype", "tokenizer_fingerprint"):
        if name not in description:
            raise ValueError(f"{path} lacks {name!r}. Save the model again.")
    return description


def is_saved(directory: str | Path) -> bool:
    """Whether a folder holds what `LanguageModel.save` or `save_adapter` wrote."""
    if is_adapter(directory):
        return True
    path = Path(directory) / CONFIG_FILE
    description = read_json(path) if path.is_file() else None
    return isinstance(description, dict) and "format" in description


def is_adapter(directory: str | Path) -> bool:
    """Whether a folder holds an adapter, of `LanguageModel.save_adapter` or of PEFT."""
    is_ours = (Path(directory) / training.ADAPTER_FILE).is_file()
    return is_ours or checkpoints.is_peft(directory)


def find_base(directory: str | Path) -> str:
    """What `LanguageModel.from_pretrained` reads the base of an adapter from.

    Raises:
        ValueError: The adapter doesn't say, or its description is damaged.
    """
    if checkpoints.is_peft(directory):
        return checkpoints.read_peft_base(directory)
    return training.read_adapter(directory, needed=ABOUT_ADAPTER)["base"]


def check_merged(model: GPT, *, may_choose: bool = False) -> None:
    """Raise `ValueError` unless a model has weights of Keras's, and no adapter.

    Args:
        model: The model.
        may_choose: Whether it may have several that its rows choose among.
    """
    if isinstance(model, OpenVINOModel):
        raise ValueError(
            "A model that OpenVINO runs can't be written anew. Load the model that it "
            "was exported from."
        )
    if training.has_lora(model):
        raise ValueError(
            "The model has an adapter. Call lm.merge_adapter() first, or write the "
            "adapter alone with lm.save_adapter(directory, base=...)."
        )
    if model.adapters.ranks and not may_choose:
        raise ValueError(
            "The model has adapters that its rows choose among, which this format "
            f"hasn't: {', '.join(model.adapters.ranks)}. Load the base, and with "
            "lm.load_adapter(directory) and lm.merge_adapter() one of them."
        )
