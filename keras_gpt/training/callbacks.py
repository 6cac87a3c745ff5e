"""What `fit` shows and notes: throughput, progress, TensorBoard events."""

import socket
import time
from pathlib import Path

import keras
import numpy as np
from keras import ops


def measure_peak_flops(dtype: str = "float32") -> float:
    """Floating-point operations a second that the device reaches in a large product.

    Args:
        dtype: Of the matrices.

    Returns:
        Operations a second, the best of a few products, for utilisation figures.
    """
    size = 1024
    best = float("inf")
    matrix = ops.cast(ops.ones((size, size)), dtype)
    for _ in range(8):
        start = time.perf_counter()
        product = ops.matmul(matrix, matrix)
        float(product[0, 0])  # wait for it: some backends only start the work
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Throughput(keras.callbacks.Callback):
    """Add to each epoch's logs `tokens_per_second`, `utilisation` and the rate.

    Put it before the callbacks that write logs. Time spent on validation and in
    other callbacks at the end of an epoch doesn't count, nor does the first batch of
    `fit`, which compiles.

    Args:
        tokens_per_batch: Batch size times sequence length.
        flops_per_token: From `GPT.count_flops_per_token`.
        peak_flops: From `measure_peak_flops`, or `None` for no utilisation.
    """

    def __init__(self, tokens_per_batch, flops_per_token=None, peak_flops=None):
        super().__init__()
        self.tokens_per_batch = tokens_per_batch
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops

    def on_train_begin(self, logs=None):
        self._compiled = False

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()
        self._batches = 0
        self._seconds = 0.0

    def on_train_batch_end(self, batch, logs=None):
        if not self._compiled:
            self._compiled = True
            self._start = time.perf_counter()
            return
        self._batches += 1
        self._seconds = time.perf_counter() - self._start

    @property
    def tokens_per_second(self):
        """Since the epoch began, or `None` before its second batch."""
        if not self._batches:
            return None
        return self._batches * self.tokens_per_batch / self._seconds

    def on_epoch_end(self, epoch, logs=None):
        if logs is None:
            return
        logs["learning_rate"] = current_learning_rate(self.model)
        speed = self.tokens_per_second
        if speed is None:
            return
        logs["tokens_per_second"] = speed
        if self.flops_per_token and self.peak_flops:
            logs["utilisation"] = speed * self.flops_per_token / self.peak_flops


def current_learning_rate(model) -> float:
    """The learning rate of the next step."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return float(ops.convert_to_numpy(optimizer.learning_rate))


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Stop when the loss is NaN or infinite; checkpoints stay as they were.

    Looks once an epoch, so that no step waits for the device. Put it before the
    callbacks that save.

    Attributes:
        stopped: Whether it stopped the run.
    """

    stopped = False

    def on_epoch_end(self, epoch, logs=None):
        for name in ("loss", "val_loss"):
            value = (logs or {}).get(name, 0.0)
            if not np.isfinite(value):
                self.stopped = self.model.stop_training = True


class ProgressBar(keras.callbacks.Callback):
    """A bar over all steps of the run, with loss, speed and the time that remains.

    Args:
        total_steps: Of the run.
        start_step: The first, when a run goes on.
        throughput: The run's `Throughput` callback.
        console: A `rich.console.Console`. Defaults to standard error.
        refresh_seconds: Least time between two readings of the loss.
    """

    def __init__(
        self,
        total_steps,
        *,
        start_step=0,
        throughput=None,
        console=None,
        refresh_seconds=0.5,
    ):
        super().__init__()
        self.total_steps = total_steps
        self.start_step = start_step
        self.throughput = throughput
        self.console = console
        self.refresh_seconds = refresh_seconds

    def on_train_begin(self, logs=None):
        from rich import progress
        from rich.console import Console

        self.console = self.console or Console(stderr=True)
        self._step = self.start_step
        self._last_update = 0.0
        self._validation_loss = None
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[figures]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
        )
        self._task = self._progress.add_task(
            "training",
            total=self.total_steps,
            completed=self.start_step,
            figures="compiling ...",
        )
        self._progress.start()

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        now = time.perf_counter()
        if now - self._last_update < self.refresh_seconds:
            return
        self._last_update = now
        self._show((logs or {}).get("loss"))

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        self._validation_loss = logs.get("val_loss", self._validation_loss)
        self._show(logs.get("loss"))
        figures = [f"step {self._step:>6}"]
        for name, label in (("loss", "loss"), ("val_loss", "validation loss")):
            if name in logs:
                figures.append(f"{label} {float(logs[name]):.4f}")
        if "val_bits_per_byte" in logs:
            figures.append(f"{logs['val_bits_per_byte']:.3f} bits/byte")
        if logs.get("tokens_per_second"):
            figures.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
        if logs.get("utilisation"):
            figures.append(f"{logs['utilisation']:.0%} of peak")
        self._progress.console.print("  ".join(figures), highlight=False)

    def on_train_end(self, logs=None):
        self._progress.stop()

    def _show(self, loss):
        figures = [] if loss is None else [f"loss {float(loss):.3f}"]
        if self._validation_loss is not None:
            figures.append(f"validation {self._validation_loss:.3f}")
        if self.throughput is not None and self.throughput.tokens_per_second:
            figures.append(f"{self.throughput.tokens_per_second:,.0f} tokens/s")
        self._progress.update(
            self._task, completed=self._step, figures="  ".join(figures)
        )


class EventLog(keras.callbacks.Callback):
    """Write each epoch's logs, and sample texts, for TensorBoard.

    Keras's own TensorBoard callback loads TensorFlow; this one doesn't, and so
    serves all backends alike.

    Args:
        directory: Folder of the events.
        steps_per_epoch: To count in steps.
        start_step: The first, when a run goes on.
        sample: A function without arguments that returns a text to note after each
            epoch, or `None`.
    """

    _TAGS = {
        "loss": "loss/train",
        "val_loss": "loss/validation",
        "val_bits_per_byte": "bits_per_byte/validation",
        "bits_per_byte": "bits_per_byte/train",
        "learning_rate": "optimizer/learning_rate",
        "tokens_per_second": "speed/tokens_per_second",
        "utilisation": "speed/utilisation",
    }

    def __init__(self, directory, *, steps_per_epoch, start_step=0, sample=None):
        super().__init__()
        self.directory = Path(directory)
        self.steps_per_epoch = steps_per_epoch
        self.start_step = start_step
        self.sample = sample

    def on_train_begin(self, logs=None):
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._writer = RecordWriter((self.directory / name).open("wb"))
        self._write(file_version="brain.Event:2")
        self._step = self.start_step

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1

    def on_epoch_end(self, epoch, logs=None):
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        from tensorboard.plugins.text.summary_v2 import text_pb

        for name, value in (logs or {}).items():
            summary = scalar_pb(self._TAGS.get(name, name), float(value))
            self._write(step=self._step, summary=summary)
        if self.sample is not None:
            # TensorBoard renders Markdown: a code block keeps the text as it is
            text = "\n".join(f"    {line}" for line in self.sample().splitlines())
            self._write(step=self._step, summary=text_pb("sample", text))
        self._writer.flush()

    def on_train_end(self, logs=None):
        self._writer.close()

    def _write(self, **fields):
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())
