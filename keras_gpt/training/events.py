"""What TensorBoard shows of a run: `EventLog`."""

import socket
import struct
import sys
import time
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_gpt import backend

try:
    import resource
except ImportError:  # Windows
    resource = None

_KINDS = ("norm", "embedding", "attention", "feed_forward")  # first in a path counts

# beside others in TensorBoard, where what is before the slash is a group
_TAGS = {
    "bits_per_byte": "loss/bits_per_byte",
    "learning_rate": "optimizer/learning_rate",
    "tokens_per_second": "speed/tokens_per_second",
    "utilisation": "speed/utilisation",
}


class EventLog(keras.callbacks.Callback):
    """Write logs, norms, memory, sample texts and pictures for TensorBoard.

    As with Keras's own callback, what is measured in training is a run `train` and what
    is measured in validation a run `validation`, so that both are in one chart. They
    are named by the step: put it behind `Throughput`, which counts.

    The norms are those of the last step of an epoch, on one device, by kind of weight:
    of its update, and of its gradient as the optimizer took it, clipped. They are
    differences of weights and of first moments, so that other steps cost nothing; for
    that step the host holds a second copy of both.

    Keras's own callback loads TensorFlow; this one doesn't, and so serves all backends
    alike.

    Args:
        directory: Folder of the events, whose name is the run's in TensorBoard.
        sample: A function without arguments that returns a text to note after each
            epoch, or `None`.
        picture: One that returns a PNG, or `None`.
        hyperparameters: By their names, or `None`.
    """

    def __init__(self, directory, *, sample=None, picture=None, hyperparameters=None):
        super().__init__()
        self.directory = Path(directory)
        self.sample = sample
        self.picture = picture
        self.hyperparameters = hyperparameters
        self._writers = {}
        self._last_loss = 0
        self._before = None
        self._norms = {}

    def on_train_begin(self, logs=None):
        if self.hyperparameters:
            from tensorboard.plugins.hparams.summary_v2 import hparams_pb

            name = self.directory.name
            self._write("", 0, hparams_pb(self.hyperparameters, trial_id=name))

    def write_loss(self, step, loss):
        """Note a training loss within an epoch, whose mean then is left out."""
        self._last_loss = step
        self._write_scalar("train", step, "loss", loss)
        self._writers["train"].flush()

    def on_train_batch_begin(self, batch, logs=None):
        is_last = batch + 1 == self.params.get("steps")
        if is_last and keras.distribution.distribution() is None:
            self._before = _read_weights(self.model)

    def on_train_batch_end(self, batch, logs=None):
        if self._before is not None:
            self._norms = _measure_norms(self.model, self._before)
            self._before = None

    def on_epoch_end(self, epoch, logs=None):
        logs = dict(logs or {})
        step = int(logs.pop("step", epoch + 1))
        if self._last_loss == step:
            logs.pop("loss", None)
        logs |= self._norms
        device = backend.device_memory()
        if device is not None:
            logs["memory/device_GB"] = device[0] / 1e9
        if resource is not None:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            unit = 1 if sys.platform == "darwin" else 1024
            logs["memory/process_GB"] = most * unit / 1e9
        for name, value in logs.items():
            run = "validation" if name.startswith("val_") else "train"
            self._write_scalar(run, step, name.removeprefix("val_"), value)
        if self.sample is not None:
            self._write("", step, _text_summary("sample", self.sample()))
        if self.picture is not None:
            self._write("", step, _picture_summary("attention", self.picture()))
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs=None):
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _write_scalar(self, run, step, name, value):
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        self._write(run, step, scalar_pb(_TAGS.get(name, name), float(value)))

    def _write(self, run, step, summary):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        def write(**fields):
            event = Event(wall_time=time.time(), **fields)
            self._writers[run].write(event.SerializeToString())

        if run not in self._writers:
            folder = self.directory / run
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
            self._writers[run] = RecordWriter((folder / name).open("wb"))
            write(file_version="brain.Event:2")
        write(step=step, summary=summary)


def find_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """The optimizer that counts, which float16's loss scaling wraps."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def _read_weights(model):
    """Copies of what is trained and of the optimizer's first moments, NumPy."""
    if not model.optimizer.built:
        return None
    return [
        [_read(variable) for variable in variables]
        for variables in (model.trainable_variables, _find(model, "_momentum"))
    ]


def _read(variable):
    return np.array(ops.convert_to_numpy(ops.cast(variable, "float32")))


def _find(model, ending):
    return [v for v in find_optimizer(model).variables if v.name.endswith(ending)]


def _measure_norms(model, before):
    """Norms of a step's updates and gradients, by names for TensorBoard."""
    optimizer = find_optimizer(model)
    scaled = {v.name.removesuffix("_velocity") for v in _find(model, "_velocity")}
    squares = {}

    def add(what, path, difference):
        kind = next((kind for kind in _KINDS if kind in path), "other")
        for name in (f"{what}/{kind}", f"{what}/all"):
            squares[name] = squares.get(name, 0.0) + float(np.sum(difference**2))

    trained, moments = model.trainable_variables, _find(model, "_momentum")
    for variable, old in zip(trained, before[0], strict=True):
        add("update_norm", variable.path, _read(variable) - old)
    if len(moments) == len(trained):
        decay = getattr(optimizer, "beta_1", getattr(optimizer, "adam_beta_1", 0.0))
        for variable, v, old in zip(trained, moments, before[1], strict=True):
            new = _read(v)
            if v.name.removesuffix("_momentum") in scaled:  # a moving average
                gradient = (new - decay * old) / (1 - decay)
            else:
                gradient = new - optimizer.momentum * old
            add("gradient_norm", variable.path, gradient)
    return {name: square**0.5 for name, square in squares.items()}


def _text_summary(tag, text):
    from tensorboard.plugins.text.summary_v2 import text_pb

    # TensorBoard renders Markdown: a code block keeps the text as it is
    return text_pb(tag, "\n".join(f"    {line}" for line in text.splitlines()))


def _picture_summary(tag, png):
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.image import metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    # a PNG has its width and height behind its signature and the header's own
    width, height = struct.unpack(">II", png[16:24])
    tensor = make_tensor_proto([b"%d" % width, b"%d" % height, png])
    about = metadata.create_summary_metadata(None, None)
    value = Summary.Value(tag=tag, tensor=tensor, metadata=about)
    return Summary(value=[value])


def read_samples(directory: str | Path) -> list[tuple[int, str]]:
    """The sample texts that an `EventLog` noted: steps and texts, in order.

    Where a run went on from an earlier step, what it wrote again replaces the text.

    Args:
        directory: The folder of the events, or one around it. One that isn't there
            has none.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    texts = {}
    paths = Path(directory).rglob("events.out.tfevents.*")
    for path in sorted(paths, key=lambda path: path.name):  # by their time
        for record in _read_records(path.read_bytes()):
            if b"sample" not in record:  # most are numbers
                continue
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.tag == "sample":
                    text = value.tensor.string_val[0].decode()
                    lines = (line[4:] for line in text.split("\n"))
                    texts[event.step] = "\n".join(lines)
    return sorted(texts.items())


def _read_records(data):
    """The records of a file of events but for one that isn't whole yet."""
    start = 0
    # before each its length and a checksum, and another behind it
    while start + 12 <= len(data):
        [length] = struct.unpack_from("<Q", data, start)
        end = start + 12 + length
        if end + 4 > len(data):
            return
        yield data[start + 12 : end]
        start = end + 4
