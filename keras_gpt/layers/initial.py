"""What a model starts from: initial weights and dropout seeds."""

import random
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from contextvars import ContextVar

import keras
import numpy as np
from keras import ops

_given = ContextVar("given", default=None)


@contextmanager
def given_values(readers: Iterable[Callable]):
    """Let the `Normal`s of what is built take values instead of drawing them.

    So a pretrained model needs neither the time nor the memory for values that would
    be replaced.

    Args:
        readers: For each matrix, in the order of building, a function from its shape
            and dtype to its values, a NumPy array.
    """
    token = _given.set(iter(readers))
    try:
        yield
    finally:
        _given.reset(token)


def has_given_values() -> bool:
    """Whether what is built now takes values that `given_values` was given."""
    return _given.get() is not None


@keras.saving.register_keras_serializable("keras_gpt")
class Normal(keras.initializers.Initializer):
    """Normal values that are the same on every backend for the same seed.

    Keras's own `RandomNormal` draws by the backend's generator, so that a run begins
    elsewhere on each.

    Args:
        stddev: Standard deviation; the mean is 0. Defaults to 0.02, GPT-2's.
        seed: Defaults to one drawn from Python's generator, which
            `keras.utils.set_random_seed` and `random.seed` set. With a seed of its own
            an initializer gives the same values each time.
    """

    def __init__(self, stddev=0.02, seed=None):
        self.stddev = stddev
        self.seed = seed

    def __call__(self, shape, dtype=None):
        if has_given_values():
            return ops.convert_to_tensor(next(_given.get())(tuple(shape), dtype), dtype)
        seed = random.randint(0, 2**32 - 1) if self.seed is None else self.seed
        generator = np.random.Generator(np.random.Philox(seed))
        values = generator.standard_normal(tuple(shape), "float32") * self.stddev
        return ops.convert_to_tensor(values, dtype=dtype)

    def get_config(self):
        return {"stddev": self.stddev, "seed": self.seed}


def make_dropout(rate, *, dtype, name):
    """A `keras.layers.Dropout` with a seed of its own, which saving and resuming keep.

    Without one, Keras on PyTorch draws from PyTorch's global generator, and a run that
    goes on drops other values. The seed itself follows Python's generator.
    """
    return keras.layers.Dropout(
        rate, seed=random.randint(1, 10**9), dtype=dtype, name=name
    )
