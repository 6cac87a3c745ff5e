"""What `fit` shows and notes: throughput, progress, losses, states."""

import datetime
import functools
import time

import keras
import numpy as np
from keras import ops
from rich import progress
from rich.console import Console

from keras_gpt.backend import hosts
from keras_gpt.training.events import EventLog as EventLog
from keras_gpt.training.events import find_optimizer
from keras_gpt.training.state import load_metrics, save_state


@functools.cache
def measure_peak_flops(dtype: str = "float32") -> float:
    """Floating-point operations a second that the device reaches in a large product.

    Args:
        dtype: Of the matrices.

    Returns:
        Operations a second, the best of a few products, for utilisation figures.
    """
    size, best = 512, 0.0
    # a GPU is done with a small one before it could be told of the next
    while best < 1e-3 and size < 16384:
        size, best = 2 * size, float("inf")
        matrix = ops.cast(ops.ones((size, size)), dtype)
        for _ in range(8):
            start = time.perf_counter()
            product = ops.matmul(matrix, matrix)
            float(product[0, 0])  # wait for it: some backends only start the work
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Throughput(keras.callbacks.Callback):
    """Add to each epoch's logs `step`, `learning_rate` and, in training, the speed.

    The speed is `tokens_per_second` and `utilisation`, the part of the peak that the
    model's own arithmetic makes up.

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
        optimizer = find_optimizer(self.model)
        logs["step"] = int(ops.convert_to_numpy(optimizer.iterations))
        logs["learning_rate"] = float(ops.convert_to_numpy(optimizer.learning_rate))
        speed = self.tokens_per_second
        if speed is None:
            return
        logs["tokens_per_second"] = speed
        if self.flops_per_token and self.peak_flops:
            logs["utilisation"] = speed * self.flops_per_token / self.peak_flops


class BitsPerByte(keras.callbacks.Callback):
    """Add `bits_per_byte` to each epoch's logs, and `val_bits_per_byte`.

    The loss of a token depends on how much text a token holds; bits for each byte of
    text compare models with different tokenizers.

    Args:
        tokens_per_byte: Of the corpus.
    """

    def __init__(self, tokens_per_byte):
        super().__init__()
        self.bits_per_nat = tokens_per_byte / np.log(2)

    def on_epoch_end(self, epoch, logs=None):
        for name in ("loss", "val_loss"):
            if logs and name in logs:
                bits = float(logs[name]) * self.bits_per_nat
                logs[name.replace("loss", "bits_per_byte")] = bits


class SaveState(keras.callbacks.Callback):
    """Call `save_state` after each epoch with a finite loss, and amid one when due.

    Of several processes all save at the same step, also where one alone was asked.

    Put it behind the other callbacks, so that what they write is there when a run goes
    on from the state. A run that goes on amid an epoch does what remains of it, and its
    means are over the whole of it.

    Args:
        path: The `.npz` file.
        steps_per_epoch: Optimizer steps in an epoch.
        first_step: The step that `load_state` returned from this path.
        accumulation_steps: Batches for one optimizer step.
        every: Steps between two states amid an epoch, or minutes, such as `"10min"`.
            Defaults to `None`: only when asked.
        previous: Where the state before the last one is kept, or `None`.
        notice: Asked by `is_set()` after each step whether to save now, and told to
            `obey()` when that is done. Defaults to `None`: never.
    """

    def __init__(
        self,
        path,
        steps_per_epoch,
        *,
        first_step=0,
        accumulation_steps=1,
        every=None,
        previous=None,
        notice=None,
    ):
        super().__init__()
        self.path = path
        self.accumulation_steps = accumulation_steps
        self.batches_per_epoch = steps_per_epoch * accumulation_steps
        is_time = isinstance(every, str)
        self.seconds = 60 * float(every.removesuffix("min")) if is_time else None
        self.steps = None if is_time else every
        self.previous = previous
        self.notice = notice
        self._batch = first_step * accumulation_steps
        self._last_time = self._last_asked = time.perf_counter()
        self._steps_to_ask = 1  # the other processes
        self._ask_at = self.step + 1

    @property
    def step(self):
        """Optimizer steps done."""
        return self._batch // self.accumulation_steps

    def on_epoch_begin(self, epoch, logs=None):
        self._is_rest = self._batch % self.batches_per_epoch > 0
        if self._is_rest:
            load_metrics(self.model, self.path)
        else:
            self._batch = epoch * self.batches_per_epoch

    def on_train_batch_end(self, batch, logs=None):
        self._batch += 1
        if self._batch % self.batches_per_epoch == 0:
            if self._is_rest:
                self.model.stop_training = True  # Keras would go on for a whole epoch
        elif self._batch % self.accumulation_steps == 0 and self._is_due():
            self._save(logs)

    def on_test_begin(self, logs=None):
        if self._is_rest:
            self.model.stop_training = False

    def on_epoch_end(self, epoch, logs=None):
        self._save(logs)

    def _is_due(self):
        if self.steps is not None and self.step % self.steps == 0:
            return True
        now = time.perf_counter()
        is_time = self.seconds is not None and now - self._last_time >= self.seconds
        if hosts.place()[1] == 1:
            return is_time or self._signal() > 0
        # about once a second, as all then wait for the slowest
        if self.step < self._ask_at:
            return False
        is_wanted = is_time or self._signal() > 0
        told = hosts.tell_all([is_wanted, now - self._last_asked])
        is_due, seconds = told.max(axis=0)
        self._last_asked = time.perf_counter()
        self._steps_to_ask = max(1, round(self._steps_to_ask / max(seconds, 1e-3)))
        self._ask_at = self.step + self._steps_to_ask
        return bool(is_due)

    def _signal(self):
        """The signal that this process was sent, or 0."""
        is_asked = self.notice is not None and self.notice.is_set()
        return int(self.notice.signal) if is_asked else 0

    def _save(self, logs):
        if np.isfinite(float((logs or {}).get("loss", 0.0))):
            save_state(self.model, self.path, self.step, self.previous)
        self._last_time = time.perf_counter()
        signal = int(hosts.tell_all(self._signal()).max())
        if signal:
            self.notice.obey(signal)


class SaveBest(keras.callbacks.Callback):
    """Save whenever the validation loss is the lowest so far; stop when it stays above.

    It saves at the end of validation, with the weights that were validated.

    Args:
        save: A function without arguments.
        patience: Stop after so many validations in a row without a lower loss. Defaults
            to `None`: never.
        losses: Of the validations before, when a run goes on.

    Attributes:
        is_over: Whether that many validations were in vain.
    """

    def __init__(self, save, *, patience=None, losses=()):
        super().__init__()
        self.save = save
        self.patience = patience
        self._best = float("inf")
        self._in_vain = 0
        for loss in losses:
            self._is_best(loss)

    @property
    def is_over(self):
        return self.patience is not None and self._in_vain >= self.patience

    def on_test_end(self, logs=None):
        if self._is_best((logs or {}).get("loss", float("nan"))):
            self.save()

    def on_epoch_end(self, epoch, logs=None):
        if self.is_over:
            self.model.stop_training = True

    def _is_best(self, loss):
        is_best = loss < self._best
        self._best = loss if is_best else self._best
        self._in_vain = 0 if is_best else self._in_vain + 1
        return is_best


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


_REMEMBERED = 1000  # batches, by which the time that remains is told
_FIGURES = {
    "step": "step {:>6}",
    "loss": "train {:.4f}",
    "val_loss": "validation {:.4f}",
    "val_bits_per_byte": "{:.3f} bits/byte",
    "tokens_per_second": "{:,.0f} tokens/s",
}


class _Pace:
    """Mean seconds that each kind of thing took lately.

    The first of each kind, which compiles, doesn't count.
    """

    def __init__(self):
        self._then = time.perf_counter()
        self._sums = {}

    def note(self, kind):
        """Note that something of a kind has ended."""
        now = time.perf_counter()
        if self.has(kind):
            seconds, count = self._sums[kind]
            forget = 0.5 if count >= _REMEMBERED else 1.0
            seconds += now - self._then
            self._sums[kind] = (forget * seconds, forget * (count + 1))
        else:
            self._sums[kind] = (0.0, 0)
        self._then = now

    def has(self, kind):
        """Whether something of a kind has ended."""
        return kind in self._sums

    def seconds(self, kind):
        """The mean, or `None` before there were two."""
        seconds, count = self._sums.get(kind, (0.0, 0))
        return seconds / count if count else None


class ProgressBar(keras.callbacks.Callback):
    """A bar over all batches of the run, with loss, speed and the time that remains.

    The time counts the validations that are to come too.

    Args:
        total_batches: Of the run.
        first_batch: Not 0 when a run goes on.
        validation_batches: Of each validation.
        throughput: The run's `Throughput` callback.
        console: A `rich.console.Console`. Defaults to standard error.
        refresh_seconds: Least time between two readings of the loss.
    """

    def __init__(
        self,
        total_batches,
        *,
        first_batch=0,
        validation_batches=0,
        throughput=None,
        console=None,
        refresh_seconds=0.5,
    ):
        super().__init__()
        self.total_batches = total_batches
        self.first_batch = first_batch
        self.validation_batches = validation_batches
        self.throughput = throughput
        self.console = console or Console(stderr=True)
        self.refresh_seconds = refresh_seconds
        self._progress = None

    def on_train_begin(self, logs=None):
        self._batch = self.first_batch
        self._last_update = 0.0
        self._pace = _Pace()
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=16),
            progress.TextColumn("{task.completed}/{task.total}"),
            progress.TextColumn("{task.fields[figures]}"),
            progress.TextColumn("{task.fields[left]}"),
            console=self.console,
        )
        self._task = self._progress.add_task(
            "training",
            total=self.total_batches,
            completed=self.first_batch,
            figures=self._first("step"),
            left="",
        )
        self._progress.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._validated = 0

    def on_train_batch_end(self, batch, logs=None):
        self._batch += 1
        self._pace.note("training")
        if self._is_due():
            self._show((logs or {}).get("loss"))

    def on_test_begin(self, logs=None):
        is_first = not self._pace.has("validation")
        self._show_validation(self._first("validation") if is_first else "")

    def on_test_batch_end(self, batch, logs=None):
        self._validated += 1
        self._pace.note("validation")
        if self._is_due():
            self._show_validation()

    def on_test_end(self, logs=None):
        self._update("writing results")

    def on_epoch_end(self, epoch, logs=None):
        self._pace.note("other")  # such as samples
        self.on_epoch_begin(epoch + 1)
        logs = logs or {}
        self._show(logs.get("loss"))
        figures = [
            text.format(logs[name]) for name, text in _FIGURES.items() if name in logs
        ]
        self._progress.console.print("  ".join(figures), highlight=False)

    def on_train_end(self, logs=None):
        if self._progress is not None:
            self._progress.stop()

    def _first(self, what):
        return f"compiling the first {what}" if self.model.jit_compile else ""

    def _is_due(self):
        return time.perf_counter() - self._last_update >= self.refresh_seconds

    def _show(self, loss):
        figures = [] if loss is None else [f"loss {float(loss):.3f}"]
        if self.throughput is not None and self.throughput.tokens_per_second:
            figures.append(f"{self.throughput.tokens_per_second:,.0f} tokens/s")
        self._update("  ".join(figures))

    def _show_validation(self, figures=""):
        done = f"validating {self._validated}/{self.validation_batches}"
        self._update(figures or done)

    def _update(self, figures):
        self._last_update = time.perf_counter()
        self._progress.update(
            self._task,
            completed=self._batch,
            figures=figures,
            left=self._say_left(),
            refresh=True,
        )

    def _say_left(self):
        training = self._pace.seconds("training")
        if training is None:
            return ""
        # before it is known: without the backward pass about a third of a step
        validation = self._pace.seconds("validation") or training / 3
        epochs = self.params["epochs"] - self._epoch
        to_validate = epochs * self.validation_batches - self._validated
        seconds = (
            (self.total_batches - self._batch) * training
            + max(0, to_validate) * validation
            + epochs * (self._pace.seconds("other") or 0)
        )
        return f"{datetime.timedelta(seconds=round(seconds))} left"


class StepLosses(keras.callbacks.Callback):
    """Tell the mean loss of every few steps; Keras's own mean is over the epoch.

    A run that goes on tells the same as one that was never stopped, if it is given what
    was told before.

    Args:
        tell: A function of a step and the mean loss of the steps up to it that it
            hasn't been told of.
        every: Steps between two calls; the end of an epoch is told as well.
        steps_per_epoch: Optimizer steps in an epoch.
        first_step: The step that `load_state` returned.
        accumulation_steps: Batches for one optimizer step.
        told: Pairs of a step and a loss that were told up to `first_step`.
    """

    def __init__(
        self,
        tell,
        every,
        steps_per_epoch,
        *,
        first_step=0,
        accumulation_steps=1,
        told=(),
    ):
        super().__init__()
        self.tell = tell
        self.every = every
        self.steps_per_epoch = steps_per_epoch
        self.accumulation_steps = accumulation_steps
        self.told = told
        self._batch = first_step * accumulation_steps

    def on_epoch_begin(self, epoch, logs=None):
        # what the mean is of, and the part of it that has been told
        self._start = self._last_told = epoch * self.steps_per_epoch
        self._told_sum = 0.0
        self._batch = max(self._batch, self._start * self.accumulation_steps)
        for step, loss in self.told:
            if step > self._start:
                self._note(step, loss)
        self.told = ()

    def on_train_batch_end(self, batch, logs=None):
        self._batch += 1
        step, rest = divmod(self._batch, self.accumulation_steps)
        if rest or (step % self.every and step % self.steps_per_epoch):
            return
        total = float(logs["loss"]) * (step - self._start)
        loss = (total - self._told_sum) / (step - self._last_told)
        self.tell(step, loss)
        self._note(step, loss)

    def _note(self, step, loss):
        self._told_sum += loss * (step - self._last_told)
        self._last_told = step
