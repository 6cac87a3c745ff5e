"""The grain dataset of `load_batches`; importing it imports grain."""

from collections.abc import Callable
from typing import Any

import grain
import numpy as np


class StepDataset(grain.IterDataset):
    """Batches in order, each read when it is asked for.

    `MapDataset.to_iter_dataset()` would do the same with 16 threads and 500 batches
    read ahead, which costs memory and more time than gathering a batch takes.

    Args:
        read: Gives the batch of a step.
        start: The first step.
        stop: The step after the last.
    """

    def __init__(self, read: Callable[[int], Any], start: int, stop: int):
        super().__init__()
        self._read = read
        self._start = start
        self._stop = stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> grain.DatasetIterator:
        return _StepIterator(self._read, self._start, self._stop)


class _StepIterator(grain.DatasetIterator):
    def __init__(self, read: Callable[[int], Any], start: int, stop: int):
        super().__init__()
        self._read = read
        self._step = start
        self._stop = stop

    def __next__(self) -> tuple[np.ndarray, ...]:
        if self._step >= self._stop:
            raise StopIteration
        batch = self._read(self._step)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        self._step = state["step"]
