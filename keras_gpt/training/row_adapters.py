"""Several adapters over one base, of which each row of a batch has its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_gpt.training.lora import LORA_TARGETS, has_lora, read_arrays


def load_adapters(
    model, directories: Mapping[str, str | Path | Mapping[str, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """Put adapters that `save_adapter` wrote side by side into the model of their base.

    Those that it had go. Its rows then choose: `keras_gpt.generate` and
    `keras_gpt.generation.Slots` take `adapter`. They may have different ranks and
    adapt different matrices; all together cost time as one of all their ranks.

    Args:
        model: The base, a `GPT` in any dtype or int8.
        directories: The folder of each, or matrices as of `checkpoints.read_peft`, by
            the name that it is given here.

    Returns:
        What the `adapter.json` of each holds.

    Raises:
        FileNotFoundError: There are no adapters in a folder.
        ValueError: They were trained for another base, a file is damaged, a name is
            empty, or the model has an adapter that trains.

    Example:

    >>> import keras_gpt
    >>> from keras_gpt import training
    >>> config = keras_gpt.GPTConfig(vocab_size=65, context_length=16, num_heads=2,
    ...                              embedding_dimension=32, num_layers=1)
    >>> model = keras_gpt.GPT(config)
    >>> training.enable_lora(model, rank=4)
    >>> training.save_adapter(model, "adapters/new")
    >>> training.remove_lora(model)
    >>> about = training.load_adapters(model, {"new": "adapters/new"})
    >>> rows = keras_gpt.generate(model, [[1], [1]], 4, adapter=["new", None])
    """
    if has_lora(model):
        raise ValueError(
            "The model has an adapter that trains. Call merge_lora(model) or "
            "remove_lora(model) first."
        )
    if not directories or not all(directories):
        raise ValueError(
            "`directories` must be some adapters' folders by their names, of which "
            f"none is empty. Received: {list(directories)}."
        )
    read = {name: read_arrays(model, path) for name, path in directories.items()}
    found = {target for _, settings, _ in read.values() for target in settings.targets}
    targets = [target for target in LORA_TARGETS if target in found]
    remove_adapters(model)
    model.add_adapters(
        {name: settings.rank for name, (_, settings, _) in read.items()}, targets
    )
    for layer in model.adapters.layers:
        down = np.zeros(layer.down.shape, "float32")
        up = np.zeros(layer.up.shape, "float32")
        start = 0
        for _, settings, arrays in read.values():
            ranks = slice(start, start + settings.rank)
            start += settings.rank
            if f"{layer.name}.down" in arrays:
                down[:, ranks] = arrays[f"{layer.name}.down"]
                scale = settings.alpha / settings.rank
                up[ranks] = scale * arrays[f"{layer.name}.up"]
        layer.down.assign(down)
        layer.up.assign(up)
    return {name: about for name, (about, _, _) in read.items()}


def remove_adapters(model) -> None:
    """Take away what `load_adapters` put into a model, if it did.

    Args:
        model: A `GPT`.
    """
    if model.adapters.ranks:
        model.take_adapters()
        model.adapters.ranks = {}
