"""The grain dataset of `load_batches`; importing it imports grain."""

import sys
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
        goes_on: Whether there are steps behind that, with other batches.
    """

    def __init__(
        self, read: Callable[[int], Any], start: int, stop: int, goes_on: bool = False
    ):
        super().__init__()
        self._read = read
        self._start = start
        self._stop = stop
        self._goes_on = goes_on

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> grain.DatasetIterator:
        return _StepIterator(self._read, self._start, self._stop)

    def repeat(self) -> "StepDataset":
        """The same without end: in random order it goes on, else it begins again."""

        def read_again(step):
            return self._read(self._start + (step - self._start) % len(self))

        read = self._read if self._goes_on else read_again
        return StepDataset(read, self._start, sys.maxsize, goes_on=True)


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
