"""What layers have in common: how they are described, made of, and where they start."""

import inspect
import random

import keras
import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.config import NORMALIZATIONS, check_choice
from keras_gpt.layers.linear import Linear


class BaseLayer(keras.layers.Layer):
    """A layer whose configuration is its constructor's arguments, kept by name."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def get_config(self):
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {
            **super().get_config(),
            **{
                name: keras.saving.serialize_keras_object(getattr(self, name))
                for name in names
                if name != "kwargs"
            },
        }

    @classmethod
    def from_config(cls, config):
        return super().from_config(
            {
                name: keras.saving.deserialize_keras_object(value)
                for name, value in config.items()
            }
        )

    def make_dense(self, name, units, use_bias, initializer):
        """A linear layer of this one's dtype."""
        return Linear(
            units,
            use_bias=use_bias,
            kernel_initializer=initializer,
            dtype=self.dtype_policy,
            name=name,
        )

    def make_dropout(self, name):
        """Dropout with a seed of its own, which saving and resuming keep.

        Without one, Keras on PyTorch draws from PyTorch's global generator, and a run
        that goes on drops other values. The seed itself follows Python's generator.
        """
        return Dropout(
            self.dropout_rate,
            seed=random.randint(1, 10**9),
            dtype=self.dtype_policy,
            name=name,
        )


class Dropout(keras.layers.Dropout):
    """Keras's dropout, by the backend's fastest way to draw what is dropped."""

    def __call__(self, inputs, training=False):
        # a layer's call takes as long as a small product on PyTorch
        if not training or self.rate == 0:
            return inputs
        return super().__call__(inputs, training=training)

    def call(self, inputs, training=False):
        return backend.dropout(inputs, self.rate, self.seed_generator)


def get_initializer(initializer):
    """The initializer that a Keras identifier stands for, `None` for N(0, 0.02)."""
    return keras.initializers.get(initializer or Normal())


@keras.saving.register_keras_serializable("keras_gpt")
class Zeros(keras.initializers.Initializer):
    """Zeros for weights that are about to be loaded, which take little memory."""

    def __call__(self, shape, dtype=None):
        return backend.zeros(tuple(shape), dtype)


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


def make_normalization(normalization, norm_epsilon, use_bias, dtype, name):
    """The Keras layer for `"layer_norm"` or `"rms_norm"`."""
    check_choice("normalization", normalization, NORMALIZATIONS)
    if normalization == "layer_norm":
        return keras.layers.LayerNormalization(
            epsilon=norm_epsilon, center=use_bias, dtype=dtype, name=name
        )
    return keras.layers.RMSNormalization(epsilon=norm_epsilon, dtype=dtype, name=name)
