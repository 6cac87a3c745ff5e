"""Request batching in the serving double, by the rules of TF Serving's BatchingSession.

Calls of one signature that arrive together run as one batch. It is padded to an allowed
size with copies of the first row of its last task. Inner shapes that differ fail all of
the batch, unless `pad_variable_length_inputs` pads each with its own first value.
"""

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from tests.serving.capi import Model, StatusError


@dataclass
class _Task:
    inputs: dict[str, np.ndarray]
    rows: int
    timeout_ms: int | None
    arrived: float = field(default_factory=time.monotonic)
    result: Future = field(default_factory=Future)


class Batcher:
    """Runs a model's signatures in batches.

    Args:
        model: The model.
        parameters: `BatchingParameters`.

    Raises:
        StatusError: The parameters contradict each other.
    """

    def __init__(self, model: Model, parameters):
        def given(name, default):
            set_ = parameters.HasField(name)
            return getattr(parameters, name).value if set_ else default

        self._model = model
        self._max_batch_size = given("max_batch_size", 1000)
        self._timeout = given("batch_timeout_micros", 0) / 1e6
        self._max_enqueued_batches = given("max_enqueued_batches", 10)
        self._allowed = list(parameters.allowed_batch_sizes)
        self._pads = parameters.pad_variable_length_inputs
        if given("enable_large_batch_splitting", False):
            raise StatusError(
                "UNIMPLEMENTED", "The double has no enable_large_batch_splitting."
            )
        if self._allowed and self._allowed[-1] != self._max_batch_size:
            raise StatusError(
                "INVALID_ARGUMENT",
                "Last entry in allowed_batch_sizes must match max_batch_size; last "
                f"entry was {self._allowed[-1]}; expected {self._max_batch_size}",
            )
        self._pool = ThreadPoolExecutor(given("num_batch_threads", os.cpu_count()))
        self._queues = {}
        self._changed = threading.Condition()
        self._closed = False

    def run(
        self, signature: str, inputs: dict, outputs: list[str], timeout_ms: int | None
    ) -> dict[str, np.ndarray]:
        """As `Model.run`, in a batch with others."""
        task = _Task(inputs, self._count_rows(inputs), timeout_ms)
        key = (signature, frozenset(inputs), frozenset(outputs))
        with self._changed:
            if key not in self._queues:
                self._queues[key] = []
                former = threading.Thread(
                    target=self._form_batches, args=(key,), daemon=True
                )
                former.start()
            queue = self._queues[key]
            room = self._max_enqueued_batches * self._max_batch_size
            if sum(waiting.rows for waiting in queue) + task.rows > room:
                raise StatusError(
                    "UNAVAILABLE",
                    "The batch scheduling queue to which this task was submitted is "
                    "full; max_enqueued_batches is "
                    f"{self._max_enqueued_batches}",
                )
            queue.append(task)
            self._changed.notify_all()
        return task.result.result()

    def close(self) -> None:
        """Stop the threads. No call may be under way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._pool.shutdown()

    def _count_rows(self, inputs: dict) -> int:
        if any(value.ndim == 0 for value in inputs.values()):
            raise StatusError(
                "INVALID_ARGUMENT",
                "Batching Run() input tensors must have at least one dimension",
            )
        sizes = {len(value) for value in inputs.values()}
        if len(sizes) != 1:
            raise StatusError(
                "INVALID_ARGUMENT",
                "Batching Run() input tensors must have equal 0th-dimension size",
            )
        (rows,) = sizes
        if rows > self._max_batch_size:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Task size {rows} is larger than maximum input batch size "
                f"{self._max_batch_size}",
            )
        return rows

    def _form_batches(self, key) -> None:
        """Take tasks from a queue, in order, until the batch is full or late."""
        queue = self._queues[key]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: queue or self._closed)
                if self._closed:
                    return
                late = queue[0].arrived + self._timeout
                while not self._is_full(queue) and time.monotonic() < late:
                    self._changed.wait(late - time.monotonic())
                batch, rows = [], 0
                while queue and rows + queue[0].rows <= self._max_batch_size:
                    rows += queue[0].rows
                    batch.append(queue.pop(0))
            self._pool.submit(self._run_batch, key, batch, rows)

    def _is_full(self, queue: list[_Task]) -> bool:
        return sum(task.rows for task in queue) >= self._max_batch_size

    def _run_batch(self, key, batch: list[_Task], rows: int) -> None:
        signature, names, outputs = key
        try:
            size = min((n for n in self._allowed if n >= rows), default=rows)
            merged = {name: self._merge(name, batch, size - rows) for name in names}
            timeouts = [task.timeout_ms for task in batch]
            timeout_ms = None if None in timeouts else max(timeouts)
            results = self._model.run(signature, merged, list(outputs), timeout_ms)
            for value in results.values():
                if value.ndim == 0:
                    raise StatusError(
                        "FAILED_PRECONDITION", "Batched output tensor has 0 dimensions"
                    )
                if len(value) != size:
                    raise StatusError(
                        "FAILED_PRECONDITION",
                        "Batched output tensor's 0th dimension does not equal the sum "
                        "of the 0th dimension sizes of the input tensors",
                    )
            start = 0
            for task in batch:
                rows_of_task = slice(start, start + task.rows)
                task.result.set_result(
                    {name: value[rows_of_task] for name, value in results.items()}
                )
                start += task.rows
        except Exception as error:  # noqa: BLE001 each caller raises it
            for task in batch:
                if not task.result.done():
                    task.result.set_exception(error)

    def _merge(self, name: str, batch: list[_Task], padding_rows: int) -> np.ndarray:
        values = [task.inputs[name] for task in batch]
        if self._pads:
            inner = np.max([value.shape[1:] for value in values], axis=0).astype(int)
            values = [_pad(value, inner) for value in values]
        elif any(value.shape[1:] != values[0].shape[1:] for value in values):
            raise StatusError(
                "FAILED_PRECONDITION",
                f"Tensors with name '{name}' from different tasks have different "
                "shapes and padding is turned off. Set pad_variable_length_inputs to "
                "true, or ensure that all tensors with the same name have equal "
                "dimensions starting with the first dim.",
            )
        if padding_rows:
            values.append(np.repeat(values[-1][:1], padding_rows, axis=0))
        return np.concatenate(values)


def _pad(value: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Pad all dimensions but the first, with the array's first value."""
    if value.size == 0 or value.shape[1:] == tuple(inner):
        return value
    shape = (len(value), *inner)
    padded = np.full(shape, value.flat[0], value.dtype)
    padded[tuple(map(slice, value.shape))] = value
    return padded
