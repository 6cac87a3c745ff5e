"""`Turns`: as `Slots`, for a model that another engine runs."""

from collections.abc import Sequence
from typing import Any

from keras_gpt.generation.rows import Row, check_count
from keras_gpt.generation.run import Generation

_NOT_THERE = ("logit_bias", "presence_penalty", "frequency_penalty", "num_alternatives")


class Turns:
    """Prompts that are continued in turn, each by passes of its own.

    Args:
        model: One that another engine runs, such as OpenVINO.
        num_slots: How many prompts go on at once. Defaults to 8.
    """

    def __init__(self, model, num_slots: int = 8):
        check_count("num_slots", num_slots)
        self._model = model
        self._num_slots = num_slots
        self._runs = {}  # by their rows

    @property
    def num_free(self) -> int:
        """How many prompts could be added now."""
        return self._num_slots - len(self._runs)

    def add(self, prompt: Sequence[int], **controls: Any) -> Row:
        """Take a prompt; as `Slots.add`, but for what the engine can't.

        Raises:
            RuntimeError: No slot is free.
            TypeError: A control is unknown.
            ValueError: The prompt or a control is out of its range.
        """
        if self.num_free == 0:
            raise RuntimeError(f"No slot is free of {self._num_slots}.")
        for name in _NOT_THERE:
            if controls.pop(name, None):
                raise ValueError(
                    f"`{name}` needs a model that Keras runs, and this one is "
                    f"{type(self._model).__name__}. Leave it out, or load the model "
                    "that it was exported from."
                )
        run = Generation(self._model, [prompt], **controls)
        [row] = run.rows
        if row.goes_on:
            self._runs[row] = run
        return row

    def stop(self, row: Row) -> None:
        """End a row now, so that its slot is free."""
        if row.goes_on:
            row.is_stopped = True
        self._runs.pop(row, None)

    def advance(self, num_tokens: int = 8) -> None:
        """Add up to so many tokens to each row."""
        check_count("num_tokens", num_tokens)
        for row, run in list(self._runs.items()):
            run.advance(num_tokens)
            if not row.goes_on:
                del self._runs[row]
