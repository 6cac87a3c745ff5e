"""LoRA: train a few small matrices beside the frozen ones of a pretrained GPT."""

import dataclasses
import functools
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from keras_gpt.files import (
    atomic_update,
    checksum,
    read_json,
    write_json,
    write_safetensors,
)
from keras_gpt.layers.adapter import LowRankAdapter

LORA_TARGETS = (
    "query_key_value",
    "output_projection",
    "up_projection",
    "down_projection",
)
ADAPTER_FILE = "adapter.json"
WEIGHTS_FILE = "adapter.safetensors"
_FORMAT = 1
_SAMPLED = 64  # values of a matrix that tell one base from another
_ROUNDING = 0.02  # int8 changes them by 1%, another base by far more


@dataclass(frozen=True)
class LoRASettings:
    """What `enable_lora` was called with."""

    rank: int
    alpha: float | None
    targets: tuple[str, ...]
    dropout_rate: float

    def __post_init__(self):
        is_count = isinstance(self.rank, int) and self.rank > 0
        _require(is_count, "rank", self.rank, "a positive integer")
        if self.alpha is None:
            object.__setattr__(self, "alpha", 2 * self.rank)
        _require(0 < self.alpha < math.inf, "alpha", self.alpha, "above 0")
        object.__setattr__(self, "targets", tuple(self.targets))  # of JSON a list
        chosen = set(self.targets)
        is_known = bool(chosen) and chosen <= set(LORA_TARGETS)
        _require(
            is_known and len(chosen) == len(self.targets),
            "targets",
            list(self.targets),
            f"some of {', '.join(LORA_TARGETS)}, each once",
        )
        rate = self.dropout_rate
        _require(0 <= rate < 1, "dropout_rate", rate, "at least 0 and below 1")


def _require(is_valid, name, value, wanted):
    if not is_valid:
        raise ValueError(f"`{name}` must be {wanted}. Received: {name}={value!r}.")


def enable_lora(
    model,
    rank: int = 8,
    *,
    alpha: float | None = None,
    targets: Sequence[str] = LORA_TARGETS,
    dropout_rate: float = 0.0,
) -> None:
    """Freeze a GPT and put trainable low-rank adapters beside its matrices.

    Until they are trained the model computes what it did. Compile it afterwards. The
    adapters are float32, whatever the model's weights are: bfloat16 or int8 too.

    Args:
        model: A `GPT`.
        rank: Of the products that are added to the matrices.
        alpha: They count `alpha / rank` times. Defaults to `2 * rank`.
        targets: Which matrices of each block: `"query_key_value"`,
            `"output_projection"`, `"up_projection"`, `"down_projection"`. Defaults to
            all of them.
        dropout_rate: Fraction of an adapter's input dropped in training.

    Raises:
        ValueError: The model has adapters or fewer bits than int8, or an argument is
            out of its range.

    References:
        - [Hu et al., 2021](https://arxiv.org/abs/2106.09685)

    Example:

    >>> import keras_gpt
    >>> config = keras_gpt.GPTConfig(vocab_size=65, context_length=16, num_heads=2,
    ...                              embedding_dimension=32, num_layers=1)
    >>> model = keras_gpt.GPT(config)
    >>> keras_gpt.training.enable_lora(model, rank=4)
    >>> keras_gpt.training.count_trainable(model)["trainable"]
    2048
    """
    if has_lora(model):
        raise ValueError(
            "The model has adapters already. Call merge_lora(model) or "
            "remove_lora(model) first."
        )
    if model.adapters.ranks:
        raise ValueError(
            "The rows of the model choose among its adapters: "
            f"{', '.join(model.adapters.ranks)}. Call remove_adapters(model) first."
        )
    settings = LoRASettings(rank, alpha, targets, dropout_rate)
    _check_base(model)
    options = {"rank": rank, "alpha": settings.alpha, "dropout_rate": dropout_rate}
    make = functools.partial(LowRankAdapter, **options)
    adapters = model.make_adapters(settings.targets, make)
    # weakly, so that weights that `quantize` replaces can go
    model.adapters.frozen = [weakref.ref(v) for v in model.trainable_variables]
    _set_trainable(model, False)
    model.put_adapters(settings.targets, adapters)
    model.adapters.settings = settings
    _forget_compiled(model)


@contextmanager
def without_lora(model) -> Iterator[None]:
    """Let a model with adapters compute, inside the block, what it did without them.

    Args:
        model: A `GPT` with `enable_lora`.
    """
    scales = [(a.scale, ops.convert_to_numpy(a.scale)) for a in _adapters(model)]
    for variable, _ in scales:
        variable.assign(0.0)
    try:
        yield
    finally:
        for variable, scale in scales:
            variable.assign(scale)


def merge_lora(model) -> None:
    """Add the adapters to the matrices beside which they stand, and remove them.

    Args:
        model: A `GPT` with `enable_lora`.

    Raises:
        ValueError: There are no adapters, or the matrices are int8.
    """
    adapters = _adapters(model)
    if model.quantization is not None:
        raise ValueError(
            f"Adapters can't be merged into {model.quantization} weights. Load the "
            "base in float32 or bfloat16, merge, and quantize what came out."
        )
    projections = model.projections(model.adapters.targets).values()
    for dense, adapter in zip(projections, adapters, strict=True):
        old = ops.convert_to_numpy(ops.cast(dense.kernel, "float32"))
        dense.kernel.assign(np.asarray(old) + adapter.product())
    remove_lora(model)


def remove_lora(model) -> None:
    """Take the adapters away: the model is again what it was before `enable_lora`.

    What trained before trains again; what was frozen before stays so.

    Args:
        model: A `GPT` with `enable_lora`.

    Raises:
        ValueError: There are no adapters.
    """
    _adapters(model)
    _set_trainable(model, True)
    model.take_adapters()
    model.adapters.settings = None
    _forget_compiled(model)


def save_adapter(
    model, directory: str | Path, *, about: dict[str, Any] | None = None
) -> None:
    """Write the adapters alone, a few MB.

    Args:
        model: A `GPT` with `enable_lora`.
        directory: Made if there is none.
        about: What else to note in `adapter.json`.
    """
    arrays = {"base_sample": base_sample(model)}
    for adapter in _adapters(model):
        for name in ("down", "up"):
            value = ops.convert_to_numpy(getattr(adapter, name))
            arrays[f"{adapter.name}.{name}"] = np.ascontiguousarray(value)
    with atomic_update(directory) as temporary:
        write_safetensors(temporary / WEIGHTS_FILE, arrays)
        description = {
            "format": _FORMAT,
            **dataclasses.asdict(model.adapters.settings),
            **(about or {}),
            "model": _architecture(model),
            "checksum": checksum(temporary / WEIGHTS_FILE),
        }
        write_json(temporary / ADAPTER_FILE, description)


def load_adapter(
    model, directory: str | Path | Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Put adapters that `save_adapter` wrote into the model that they were trained for.

    A model that has adapters of the same shape gets these values instead, without
    being compiled anew; so several can take turns with one base.

    Args:
        model: The base, a `GPT` in any dtype or int8.
        directory: The folder, or matrices as of `checkpoints.read_peft`.

    Returns:
        What `adapter.json` holds.

    Raises:
        FileNotFoundError: There are no adapters in the folder.
        ValueError: They were trained for another base, or a file is damaged.
    """
    about, settings, arrays = read_arrays(model, directory)
    if model.adapters.settings != settings:
        if has_lora(model):
            remove_lora(model)
        enable_lora(model, **dataclasses.asdict(settings))
    for adapter in model.adapters.layers:
        adapter.down.assign(arrays[f"{adapter.name}.down"])
        adapter.up.assign(arrays[f"{adapter.name}.up"])
    return about


def read_arrays(
    model, directory: str | Path | Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], LoRASettings, dict[str, np.ndarray]]:
    """Read adapters that `save_adapter` wrote, and check that they are for a model.

    Args:
        model: A `GPT`, which stays as it is.
        directory: As of `load_adapter`.

    Returns:
        What `adapter.json` holds, the settings in it, and the matrices by name.

    Raises:
        FileNotFoundError: As of `load_adapter`.
        ValueError: As of `load_adapter`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if isinstance(directory, Mapping):
        _check_base(model)
        rank = next(iter(directory.values())).shape[1]
        targets = [t for t in LORA_TARGETS if f"block_0_{t}.down" in directory]
        return {}, LoRASettings(rank, rank, targets, 0.0), directory
    about = read_adapter(directory)
    if about["model"] != _architecture(model):
        raise _another_base(directory, "its architecture is another")
    path = Path(directory) / WEIGHTS_FILE
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} can't be read ({error}). It may be truncated: copy it again."
        ) from error
    # adapters of earlier versions have none
    if about.get("checksum") not in (None, checksum(path)):
        raise ValueError(f"{path} is damaged: its checksum is another. Copy it again.")
    settings = _settings(about)
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != _stored_shapes(model, settings):
        raise ValueError(
            f"{path} doesn't belong to the {ADAPTER_FILE} beside it. Copy both again."
        )
    sample, expected = base_sample(model), arrays["base_sample"]
    error = np.linalg.norm(sample - expected) / np.linalg.norm(expected)
    if not error < _ROUNDING:
        raise _another_base(directory, f"its weights differ by {error:.0%}")
    return about, settings, arrays


def read_adapter(
    directory: str | Path, *, needed: Sequence[str] = ()
) -> dict[str, Any]:
    """Read the `adapter.json` of a folder that `save_adapter` wrote.

    Args:
        directory: The folder.
        needed: Names that `about` of `save_adapter` must have had.

    Raises:
        FileNotFoundError: There are no adapters in the folder.
        ValueError: The file is damaged.
    """
    path = Path(directory) / ADAPTER_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no adapter in {directory}: {ADAPTER_FILE} is missing. Train one "
            "with `keras-gpt finetune`."
        )
    about = read_json(path)
    try:
        is_whole = {"model", *needed} <= about.keys()
        if about["format"] == _FORMAT and is_whole and _settings(about):
            return about
    except (TypeError, KeyError, ValueError, AttributeError):
        pass
    raise ValueError(
        f"{path} wasn't written by this version of keras_gpt. Train the adapter "
        "again, or install the version that wrote it."
    )


def has_lora(model) -> bool:
    """Whether a model has adapters."""
    adapters = getattr(model, "adapters", None)  # no model of another engine has any
    return adapters is not None and adapters.settings is not None


def count_trainable(model) -> dict[str, int]:
    """Count a model's parameters, and the bytes that training them takes.

    Returns:
        `parameters`, `trainable`, `weight_bytes`, and `training_bytes` for gradients
        and AdamW's two moments, float32. Activations come on top.
    """
    import ml_dtypes  # noqa: F401  # from here on NumPy knows bfloat16

    trainable = sum(math.prod(v.shape) for v in model.trainable_variables)
    return {
        "parameters": model.count_params(),
        "trainable": trainable,
        "weight_bytes": sum(
            math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in model.weights
        ),
        "training_bytes": 3 * 4 * trainable,
    }


def base_sample(model) -> np.ndarray:
    """Some of the frozen weights, by which an adapter knows its base."""
    _check_base(model)
    values = []
    for block in model.blocks:
        dense = block.feed_forward.up_projection
        kernel = ops.cast(dense.kernel, "float32")
        if dense.quantization_mode == "int8":
            kernel = kernel / ops.cast(dense.kernel_scale, "float32")
        size = int(np.prod(kernel.shape))
        places = np.linspace(0, size - 1, _SAMPLED).astype("int32")
        values.append(ops.convert_to_numpy(ops.take(ops.ravel(kernel), places)))
    return np.concatenate(values).astype("float32")


def _architecture(model):
    # whether packed documents are kept apart changes no weight
    config = model.config.to_dict()
    config.pop("document_separator_id", None)
    return config


def _stored_shapes(model, settings):
    """The shape of each array that `save_adapter` writes."""
    shapes = {"base_sample": (_SAMPLED * len(model.blocks),)}
    for name, dense in model.projections(settings.targets).items():
        shapes[f"{name}.down"] = (dense.kernel.shape[0], settings.rank)
        shapes[f"{name}.up"] = (settings.rank, dense.units)
    return shapes


def _settings(about):
    """The settings in what `adapter.json` holds."""
    fields = dataclasses.fields(LoRASettings)
    return LoRASettings(**{field.name: about[field.name] for field in fields})


def _set_trainable(model, trainable):
    """Freeze what trained before `enable_lora`, or let it train again."""
    for reference in model.adapters.frozen:
        variable = reference()
        if variable is not None:
            variable.trainable = trainable


def _forget_compiled(model):
    """Have Keras trace what it compiled anew, as its `quantize` does."""
    model.train_function = model.test_function = model.predict_function = None


def _check_base(model):
    if model.quantization not in (None, "int8"):
        raise ValueError(
            "Adapters need a base in float32, bfloat16 or int8. Received: "
            f"{model.quantization} weights. Quantize to int8, or not at all."
        )


def _adapters(model):
    if not has_lora(model):
        raise ValueError(
            "The model has no adapters. Call keras_gpt.training.enable_lora(model), or "
            "load_adapter(model, directory)."
        )
    return model.adapters.layers


def _another_base(directory, why):
    return ValueError(
        f"The adapter in {directory} was trained for another base: {why}. Load the one "
        "that its adapter.json names."
    )
