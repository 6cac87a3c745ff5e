"""What a model starts from: initial weights and dropout seeds."""

import random

import keras
import numpy as np
from keras import ops


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
