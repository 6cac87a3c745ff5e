"""What will fit: the memory that training takes, told before it is taken."""

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np

from keras_gpt import backend
from keras_gpt.checkpoints.parts import weight_shapes
from keras_gpt.config import GPTConfig
from keras_gpt.loss import LOGITS_AT_ONCE
from keras_gpt.model import GPT
from keras_gpt.runs.config import Plan

_OF_COMPILE = ("optimizer", "accumulation_steps", "ema_momentum", "remat")
_ENDS = 6  # as many values as the input of a block has, before and behind the blocks


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step takes on each device.

    Attributes:
        weights: Of the model.
        optimizer: What the optimizer keeps from step to step.
        gradients: Of the weights that are trained.
        activations: What the blocks keep until the gradients are made.
        logits: What the loss takes, of all logits or of a chunk.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    logits: int

    @property
    def peak(self) -> int:
        """The most at once: activations go while gradients come."""
        kept = self.weights + self.optimizer
        return kept + max(self.gradients, self.activations + self.logits)

    def describe(self) -> str:
        """In a line for people."""
        parts = ", ".join(
            f"{part} {_show(size)}" for part, size in asdict(self).items()
        )
        return f"A step takes about {_show(self.peak)} ({parts})"


def estimate_memory(
    model: GPT | GPTConfig,
    batch_size: int,
    sequence_length: int | None = None,
    *,
    dtype: str | None = None,
    optimizer: str = "adamw",
    accumulation_steps: int = 1,
    ema_momentum: float | None = None,
    remat: bool = False,
) -> Memory:
    """The memory of a training step with the default loss, from sizes alone.

    It is a formula for each backend, within 15% of what was measured on CPUs
    (`benchmarks/memory.py`), but on TensorFlow, whose graph and compiled code of some
    layers take a quarter to half a GB on top. Python and libraries do, too.

    Args:
        model: To be trained as `compile_model` does it, or the configuration of one
            that needn't exist yet.
        batch_size: Rows of a batch, over all devices of `keras.distribution`.
        sequence_length: Tokens in a row. Defaults to `context_length`.
        dtype: A dtype policy. Defaults to the model's, or to Keras's global one.
        optimizer: `"adamw"` or `"muon"`.
        accumulation_steps: As of `compile_model`, as are the next two.
        ema_momentum: `None` for no averaged weights.
        remat: Whether blocks are computed twice.

    Example:

    >>> import keras_gpt
    >>> config = keras_gpt.GPTConfig.from_preset("gpt2")
    >>> memory = keras_gpt.runs.estimate_memory(config, 8, dtype="float32")
    >>> memory.weights, memory.optimizer
    (497759232, 995518464)
    """
    is_made = isinstance(model, GPT)
    config = model.config if is_made else model
    if dtype is None:
        dtype = model.dtype_policy if is_made else keras.config.dtype_policy()
    policy = keras.dtype_policies.get(dtype)
    if is_made:
        weights = [(v.path, v.shape, v.dtype, v.trainable) for v in model.variables]
    else:
        shapes, kind = weight_shapes(config), policy.variable_dtype
        weights = [(path, shape, kind, True) for path, shape, _ in shapes]
    spread = keras.distribution.distribution()
    axes = _axes(spread)
    held = trained = state = 0
    more = (accumulation_steps > 1) + (ema_momentum is not None)
    for path, shape, kind, is_trained in weights:
        size = np.dtype(kind).itemsize * math.prod(shape)
        if spread is not None:
            weight = SimpleNamespace(path=path, shape=shape)
            cut = filter(None, spread.get_variable_layout(weight).axes)
            size //= math.prod(axes[axis] for axis in cut)
        held += size
        if is_trained:
            is_orthogonalized = len(shape) == 2 and "embedding" not in path
            moments = 1 if optimizer == "muon" and is_orthogonalized else 2
            trained += size
            state += size * (moments + more)

    itemsize = 4 if policy.compute_dtype == "float32" else 2
    across = axes.pop("model", 1)  # what is computed of a row is cut too
    rows = batch_size / math.prod(axes.values())
    length = sequence_length or config.context_length
    kept = backend.count_kept_bytes(config, rows, length, itemsize, remat)
    ends = _ENDS * rows * length * config.embedding_dimension * itemsize
    return Memory(
        weights=held,
        optimizer=state,
        gradients=trained,
        activations=round(kept / across + ends),
        logits=round(_bytes_of_logits(config, rows, length)),
    )


def _axes(spread):
    """Devices along each axis."""
    if spread is None:
        return {}
    mesh = spread.device_mesh
    return dict(zip(mesh.axis_names, mesh.shape, strict=True))


def _bytes_of_logits(config, rows, length):
    """What the default loss takes; in chunks with the output matrix's gradient."""
    size = rows * length * config.vocab_size
    if size <= LOGITS_AT_ONCE:
        return size * backend.BYTES_PER_LOGIT
    chunk = size / math.ceil(size / LOGITS_AT_ONCE)
    return (
        chunk * backend.BYTES_PER_LOGIT
        + 4 * config.vocab_size * config.embedding_dimension
    )


def check_memory(plan: Plan, model: GPT | GPTConfig, sequence_length: int) -> Memory:
    """The memory of a run's steps, if there is so much.

    Args:
        plan: Of the run.
        model: What it trains, as of `estimate_memory`.
        sequence_length: Tokens in a row.

    Raises:
        ValueError: It plainly doesn't fit. The message says what would.
    """

    def estimate(**changes):
        names = ("batch_size", "dtype", *_OF_COMPILE)
        fields = plan.model_dump(include=set(names)) | changes
        return estimate_memory(model, sequence_length=sequence_length, **fields)

    memory, there = estimate(), _memory_of_device()
    if there is None or memory.peak <= there:
        return memory
    ways = (change for change in _same_steps(plan) if estimate(**change).peak <= there)
    way = " ".join(f"{name}={value}" for name, value in next(ways, {}).items())
    advice = f"Try {way}, which is the same step. " if way else ""
    raise ValueError(
        f"{memory.describe()}, and the device has {_show(there)}. Received: batch_size="
        f"{plan.batch_size}, {sequence_length} tokens in a row. {advice}Less memory "
        "take a smaller batch_size with more accumulation_steps, remat=true, a shorter "
        "sequence_length, dtype=mixed_bfloat16, devices=fsdp:2 (or more), and a "
        "smaller model."
    )


def _same_steps(plan):
    """What changes a run's memory and not what it computes, the fastest first."""
    rows, batches = plan.batch_size, plan.accumulation_steps
    while rows % 2 == 0:
        rows, batches = rows // 2, batches * 2
        change = {"batch_size": rows, "accumulation_steps": batches}
        if not plan.remat:
            yield change
        yield change | {"remat": True}


def _memory_of_device():
    """Bytes that a device has, of a CPU its share of the host's; `None` if unknown."""
    accelerator = backend.device_memory()
    if accelerator is not None:
        return accelerator[1]
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = Path("/sys/fs/cgroup/memory.max")  # of a container
        text = limit.read_text().strip() if limit.is_file() else "max"
    except (AttributeError, OSError, ValueError):  # not on Linux
        return None
    there = there if text == "max" else min(there, int(text))
    return there // math.prod(_axes(keras.distribution.distribution()).values())


def _show(size):
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
