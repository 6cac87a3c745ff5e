"""What every format is read into, and a model made of it, tensor by tensor."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from keras_gpt import backend
from keras_gpt.checkpoints.names import Names
from keras_gpt.checkpoints.stored import CHUNK
from keras_gpt.config import GPTConfig
from keras_gpt.model import GPT
from keras_gpt.tokenizers import ChatTemplate, Tokenizer


@dataclass
class Checkpoint:
    """A pretrained model that has been looked at but not yet loaded.

    Args:
        config: The architecture.
        names: What the format calls each weight.
        shapes: The shape of each array in the checkpoint, by its name.
        read_rows: From one of those names to its array, some rows at a time.
        tokenizer: Its tokenizer, `None` if it has none that keras_gpt reads.
        chat_template: How it wants messages written, `None` if it doesn't say.
        stop_ids: Token ids that end its answers.
        generation_defaults: Controls of generation that its makers recommend.
        source: Where it came from, by what name, under which licence.
        tasks: What keras_gpt tuned it for.

    Raises:
        ValueError: An array is missing, has another shape, or has no place in the
            architecture.
    """

    config: GPTConfig
    names: Names
    shapes: Mapping[str, tuple[int, ...]]
    read_rows: Callable[[str], Iterable[np.ndarray]]
    tokenizer: Tokenizer | None = None
    chat_template: ChatTemplate | None = None
    stop_ids: tuple[int, ...] = ()
    generation_defaults: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        tasks = self.tasks
        if not isinstance(tasks, dict) or not all(
            isinstance(about, dict) for about in tasks.values()
        ):
            raise ValueError(
                "The checkpoint's tasks must be a table with what is noted of each. "
                f"Received: {tasks!r:.80}."
            )
        wanted = set()
        # stops at the first that is missing: a damaged file can promise any number
        for part in self.names.parts(self.config):
            wanted.add(part.name)
            if part.name not in self.shapes:
                raise ValueError(
                    f"The checkpoint lacks {part.name}. Download it again."
                )
            shape = tuple(self.shapes[part.name])
            if shape != part.shape:
                raise ValueError(
                    f"{part.name} has the shape {shape}; the checkpoint's description "
                    f"wants {part.shape}. The files don't belong together."
                )
        for name in sorted(self.shapes.keys() - wanted):
            if not self.names.ignores(name):
                raise ValueError(
                    f"The checkpoint has {name}, for which the architecture has no "
                    "place. keras_gpt doesn't support this model."
                )

    def build_model(self, dtype: str | None = None) -> GPT:
        """Make the model, reading one tensor at a time.

        So memory holds little more than the weights.

        Args:
            dtype: A dtype or dtype policy. Defaults to Keras's global one.

        Raises:
            ValueError: A file was changed since it was looked at, or a tensor is
                quantized in a way that can't be read.
        """
        model = GPT(self.config, dtype=dtype, initial_weights=False)
        weights = {variable.path: variable for variable in model.weights}
        parts = self.names.parts(self.config)
        for path, same_weight in groupby(parts, key=lambda part: part.path):
            backend.assign(weights[path], self._rows(list(same_weight)))
        return model

    def read(self, name: str) -> np.ndarray:
        """The whole array of a name in `shapes`."""
        return np.concatenate(list(self.read_rows(name)))

    def _rows(self, parts):
        """The weight of which these are the parts, some rows at a time."""
        if len(parts) == 1 and not parts[0].is_transposed:
            return self.read_rows(parts[0].name)
        arrays = [self.read(part.name) for part in parts]
        if parts[0].is_transposed:
            arrays = [array.T for array in arrays]
        values = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
        step = max(1, CHUNK // values[0].nbytes)
        return (values[i : i + step] for i in range(0, len(values), step))
