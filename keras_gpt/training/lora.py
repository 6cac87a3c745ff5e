"""LoRA: train a few small matrices beside the frozen ones of a pretrained GPT."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from keras_gpt.files import atomic_update, read_json, write_json
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
    alpha: float
    targets: tuple[str, ...]
    dropout_rate: float

    def __post_init__(self):
        # from JSON it is a list
        object.__setattr__(self, "targets", tuple(self.targets))


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
        ValueError: The model has adapters, or an argument is out of its range.

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
    if alpha is None:
        alpha = 2 * rank
    _check(model, rank, alpha, targets, dropout_rate)
    # float32 variables, and the arithmetic of the model
    compute_dtype = model.compute_dtype
    policy = compute_dtype if compute_dtype == "float32" else f"mixed_{compute_dtype}"
    denses, adapters = [], []
    for block in model.blocks:
        for target in targets:
            dense = _projection(block, target)
            adapter = LowRankAdapter(
                dense.units,
                rank=rank,
                alpha=alpha,
                dropout_rate=dropout_rate,
                dtype=policy,
                name=f"{block.name}_{target}",
            )
            adapter.build((None, None, dense.kernel.shape[0]))
            denses.append(dense)
            adapters.append(adapter)
    for layer in model.layers:
        layer.trainable = False
    for dense, adapter in zip(denses, adapters, strict=True):
        # a method, which Keras doesn't track: the layer is the model's
        dense.adapter = adapter.__call__
    model.adapters.layers.extend(adapters)
    model.adapters.settings = LoRASettings(rank, alpha, tuple(targets), dropout_rate)
    _forget_compiled(model)


@contextmanager
def without_lora(model) -> Iterator[None]:
    """Let a model with adapters compute, inside the block, what it did without them.

    Args:
        model: A `GPT` with `enable_lora`.
    """
    scales = [ops.convert_to_numpy(a.scale) for a in _adapters(model)]
    for adapter in model.adapters.layers:
        adapter.scale.assign(0.0)
    try:
        yield
    finally:
        for adapter, scale in zip(model.adapters.layers, scales, strict=True):
            adapter.scale.assign(scale)


def merge_lora(model) -> None:
    """Add the adapters to the matrices beside which they stand, and remove them.

    Args:
        model: A `GPT` with `enable_lora`.

    Raises:
        ValueError: There are no adapters, or the matrices are int8.
    """
    adapters = iter(_adapters(model))
    if model.quantization is not None:
        raise ValueError(
            f"Adapters can't be merged into {model.quantization} weights. Load the "
            "base in float32 or bfloat16, merge, and quantize what came out."
        )
    for block in model.blocks:
        for target in model.adapters.settings.targets:
            kernel = _projection(block, target).kernel
            old = np.asarray(ops.convert_to_numpy(ops.cast(kernel, "float32")))
            kernel.assign(old + next(adapters).product())
    remove_lora(model)


def remove_lora(model) -> None:
    """Take the adapters away: the model is again what it was before `enable_lora`.

    Args:
        model: A `GPT` with `enable_lora`.

    Raises:
        ValueError: There are no adapters.
    """
    _adapters(model)
    for block in model.blocks:
        for target in model.adapters.settings.targets:
            _projection(block, target).adapter = None
    for layer in model.layers:
        layer.trainable = True
    # emptied, not replaced: Keras goes on tracking what a replaced list held
    model.adapters.layers.clear()
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
    from safetensors.numpy import save_file

    arrays = {"base_sample": base_sample(model)}
    for adapter in _adapters(model):
        for name in ("down", "up"):
            value = ops.convert_to_numpy(getattr(adapter, name))
            arrays[f"{adapter.name}.{name}"] = np.ascontiguousarray(value)
    description = {
        "format": _FORMAT,
        **dataclasses.asdict(model.adapters.settings),
        **(about or {}),
        "model": _architecture(model),
    }
    with atomic_update(directory) as temporary:
        save_file(arrays, temporary / WEIGHTS_FILE)
        write_json(temporary / ADAPTER_FILE, description)


def load_adapter(model, directory: str | Path) -> dict[str, Any]:
    """Put adapters that `save_adapter` wrote into the model that they were trained for.

    A model that has adapters of the same shape gets these values instead, without
    being compiled anew; so several can take turns with one base.

    Args:
        model: The base, a `GPT` in any dtype or int8.
        directory: The folder.

    Returns:
        What `adapter.json` holds.

    Raises:
        FileNotFoundError: There are no adapters in the folder.
        ValueError: They were trained for another base, or a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

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
    fields = dataclasses.fields(LoRASettings)
    settings = LoRASettings(**{field.name: about[field.name] for field in fields})
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != _stored_shapes(model, settings):
        raise ValueError(
            f"{path} doesn't belong to the {ADAPTER_FILE} beside it. Copy both again."
        )
    sample, expected = base_sample(model), arrays["base_sample"]
    error = np.linalg.norm(sample - expected) / np.linalg.norm(expected)
    if not error < _ROUNDING:
        raise _another_base(directory, f"its weights differ by {error:.0%}")
    if model.adapters.settings != settings:
        if has_lora(model):
            remove_lora(model)
        enable_lora(model, **dataclasses.asdict(settings))
    for adapter in model.adapters.layers:
        adapter.down.assign(arrays[f"{adapter.name}.down"])
        adapter.up.assign(arrays[f"{adapter.name}.up"])
    return about


def read_adapter(directory: str | Path) -> dict[str, Any]:
    """Read the `adapter.json` of a folder that `save_adapter` wrote.

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
    needed = {"model", *(field.name for field in dataclasses.fields(LoRASettings))}
    if (
        not isinstance(about, dict)
        or about.get("format") != _FORMAT
        or not needed <= about.keys()
    ):
        raise ValueError(
            f"{path} wasn't written by this version of keras_gpt. Train the adapter "
            "again, or install the version that wrote it."
        )
    return about


def has_lora(model) -> bool:
    """Whether a model has adapters."""
    return model.adapters.settings is not None


def count_trainable(model) -> dict[str, int]:
    """Count a model's parameters, and the bytes that training them takes.

    Returns:
        `parameters`, `trainable`, `weight_bytes`, and `training_bytes` for gradients
        and AdamW's two moments, float32. Activations come on top.
    """
    import ml_dtypes  # noqa: F401  # from here on NumPy knows bfloat16

    def count(variables):
        return sum(int(np.prod(variable.shape)) for variable in variables)

    trainable = count(model.trainable_variables)
    return {
        "parameters": count(model.weights),
        "trainable": trainable,
        "weight_bytes": sum(
            int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in model.weights
        ),
        "training_bytes": 3 * 4 * trainable,
    }


def base_sample(model) -> np.ndarray:
    """Some of the frozen weights, by which an adapter knows its base."""
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
    for block in model.blocks:
        for target in settings.targets:
            dense, name = _projection(block, target), f"{block.name}_{target}"
            shapes[f"{name}.down"] = (dense.kernel.shape[0], settings.rank)
            shapes[f"{name}.up"] = (settings.rank, dense.units)
    return shapes


def _forget_compiled(model):
    """Have Keras trace what it compiled anew, as its `quantize` does."""
    model.train_function = model.test_function = model.predict_function = None


def _projection(block, target):
    is_attention = target in LORA_TARGETS[:2]
    return getattr(block.attention if is_attention else block.feed_forward, target)


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


def _check(model, rank, alpha, targets, dropout_rate):
    if has_lora(model):
        raise ValueError(
            "The model has adapters already. Call merge_lora(model) or "
            "remove_lora(model) first."
        )
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"`rank` must be a positive integer. Received: rank={rank!r}.")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"`alpha` must be above 0. Received: alpha={alpha}.")
    unknown = [target for target in targets if target not in LORA_TARGETS]
    if unknown or not targets or len(set(targets)) < len(targets):
        raise ValueError(
            f"`targets` must be some of {', '.join(LORA_TARGETS)}, each once. "
            f"Received: {targets!r}."
        )
    if not 0 <= dropout_rate < 1:
        raise ValueError(
            "`dropout_rate` must be at least 0 and below 1. Received: "
            f"dropout_rate={dropout_rate}."
        )
