"""LoRA adapters in the format of Hugging Face's PEFT."""

import math
from pathlib import Path

import numpy as np
from keras import ops

from keras_gpt.checkpoints.families import check_family, find_family
from keras_gpt.checkpoints.huggingface.config import names_of
from keras_gpt.checkpoints.huggingface.hub import HUB
from keras_gpt.checkpoints.huggingface.reading import read_chat_template
from keras_gpt.checkpoints.huggingface.safetensors import read_file
from keras_gpt.checkpoints.parts import weight_shapes
from keras_gpt.checkpoints.settings import Settings
from keras_gpt.config import GPTConfig
from keras_gpt.files import atomic_update, read_json, write_json, write_safetensors
from keras_gpt.model import GPT
from keras_gpt.tokenizers import ChatTemplate

_SETTINGS = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FIXED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # others change the base too
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
# Beside what is read: settings of training, and of which modules have tensors
_WITHOUT_EFFECT = (
    "r",
    "lora_alpha",
    "use_rslora",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "peft_version",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "fan_in_fan_out",
    "lora_dropout",
    "inference_mode",
    "auto_mapping",
    "runtime_config",
    "eva_config",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
)


def is_peft(folder: str | Path) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (Path(folder) / _SETTINGS).is_file()


def read_peft_base(folder: str | Path) -> str:
    """What `LanguageModel.from_pretrained` reads the base of an adapter from.

    Raises:
        ValueError: The adapter doesn't say.
    """
    name = _read_settings(folder).find("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise ValueError(
            f"The adapter in {folder} names no base. Load the base, and call "
            f"lm.load_adapter({str(folder)!r})."
        )
    return name if Path(name).exists() or Path(name).is_absolute() else HUB + name


def read_peft(
    folder: str | Path, config: GPTConfig
) -> tuple[dict[str, np.ndarray], ChatTemplate | None]:
    """Read a LoRA adapter of PEFT as one of ours.

    We have one matrix for query, key and value, and one for gate and up, where PEFT
    adapts each: their products stand side by side in one of all their ranks together,
    so up to three times `r`, with zeros in the columns of the others. As our adapters
    have one rank, the other matrices' are padded with zeros too.

    Which modules are adapted is seen by the tensors, not by `target_modules`.

    Args:
        folder: Holds `adapter_config.json` and `adapter_model.safetensors`.
        config: Of the base. That its weights are those of training isn't known.

    Returns:
        The matrices, as `training.load_adapter` takes them, and the chat template
        with which it was tuned, if the folder has one.

    Raises:
        FileNotFoundError: There are no weights in safetensors.
        ValueError: A setting isn't supported, a module is adapted beside which we have
            no adapters, the base is another, or a file is damaged.
    """
    settings = _read_settings(folder)
    path = Path(folder) / _WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no weights in {folder}: {_WEIGHTS} is missing. If it has a "
            ".bin, save the adapter again with PEFT, which writes safetensors."
        )
    rank, alpha = settings.integer("r"), settings.number("lora_alpha")
    scale = alpha / (math.sqrt(rank) if settings.find("use_rslora") else rank)
    tensors = read_file(path)
    pairs = {}
    for part in names_of(find_family(config)).parts(config):
        module = _PREFIX + part.name.removesuffix(".weight")
        down, up = (f"{module}.lora_{letter}.weight" for letter in "AB")
        if part.path.endswith("/kernel") and down in tensors:
            rows, width = part.shape[:: -1 if part.is_transposed else 1]
            pair = _take(tensors, down, (rank, rows)), _take(tensors, up, (width, rank))
            pairs.setdefault(part.path, []).append((part.columns, *pair))
    if tensors or not pairs:
        raise ValueError(
            f"{path} has {min(tensors, default='nothing')}, for which there is no "
            "place: adapters stand beside the matrices of attention and feed-forward "
            f"layers of a {find_family(config)!r} model. Merge it with PEFT, or train "
            "one of these alone."
        )
    whole = rank * max(map(len, pairs.values()))
    targets = {path.split("/")[-2] for path in pairs}
    arrays = {}
    for path, shape, _ in weight_shapes(config):
        block, *_, target = path.removesuffix("/kernel").split("/")
        if target not in targets or not path.endswith("/kernel"):
            continue
        rows, width = shape
        down, up = np.zeros((rows, whole), "f"), np.zeros((whole, width), "f")
        for i, (part, a, b) in enumerate(pairs.get(path, ())):
            ranks = slice(i * rank, (i + 1) * rank)
            down[:, ranks] = a.T
            up[ranks, part] = scale * b.T
        arrays |= {f"{block}_{target}.down": down, f"{block}_{target}.up": up}
    return arrays, read_chat_template(Path(folder))


def write_peft(model: GPT, directory: str | Path, base: str) -> None:
    """Write the adapter of a model for PEFT, and what reads its folders.

    What stands beside our one matrix for query, key and value becomes an adapter of
    each, of the same rank.

    Args:
        model: A `GPT` with `enable_lora`.
        directory: Made if there is none.
        base: What Transformers reads the base from.

    Raises:
        ValueError: The model has no adapter, or no family has its mathematics.
    """
    config, settings = model.config, model.adapters.settings
    if settings is None:
        raise ValueError("The model has no adapter. Train one with enable_lora.")
    layers = {layer.name: layer for layer in model.adapters.layers}
    family = find_family(config)
    check_family(config, family, {}, "PEFT")
    tensors, modules = {}, []
    for part in names_of(family).parts(config):
        block, *_, target = part.path.removesuffix("/kernel").split("/")
        layer = layers.get(f"{block}_{target}")
        if layer is None or not part.path.endswith("/kernel"):
            continue
        modules.append(part.name.removesuffix(".weight"))
        values = {"A": layer.down, "B": layer.up[:, part.columns]}
        for letter, value in values.items():
            value = np.ascontiguousarray(ops.convert_to_numpy(value).T)
            tensors[f"{_PREFIX}{modules[-1]}.lora_{letter}.weight"] = value
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.removeprefix(HUB),
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout_rate,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": family == "gpt2",
    }
    with atomic_update(directory) as folder:
        write_safetensors(folder / _WEIGHTS, tensors, {"format": "pt"})
        write_json(folder / _SETTINGS, description)


def _read_settings(folder):
    path = Path(folder) / _SETTINGS
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    settings = Settings(content)
    for name, values in _FIXED.items():
        settings.require(name, *values)
    for name, value in content.items():
        if value and name not in (*_FIXED, *_WITHOUT_EFFECT):
            settings.refuse(name, "absent")
    return settings


def _take(tensors, name, shape):
    tensor = tensors.pop(name, None)
    if tensor is None or tensor.shape != shape:
        found = "none" if tensor is None else tensor.shape
        raise ValueError(
            f"{name} must be {shape} for this base. Received: {found}. Load the base "
            "that adapter_config.json names."
        )
    return np.concatenate(list(tensor.read_rows())).astype("float32")
