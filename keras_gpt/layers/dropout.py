"""Dropout whose draws belong to the model's state."""

import random

import keras


def make_dropout(rate, *, dtype, name):
    """A `keras.layers.Dropout` with a seed of its own, which saving and resuming keep.

    Without one, Keras on PyTorch draws from PyTorch's global generator, and a run that
    goes on drops other values. The seed itself follows `keras.utils.set_random_seed`.
    """
    return keras.layers.Dropout(
        rate, seed=random.randint(1, 10**9), dtype=dtype, name=name
    )
