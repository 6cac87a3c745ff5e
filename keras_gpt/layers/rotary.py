"""Rotary positions.

Each pair of a head's values turns by an angle that grows with the position, so that
the product of a query and a key depends on their distance.

References:
    - [Su et al., 2021](https://arxiv.org/abs/2104.09864)
"""

# Axes: b batch, t position, n head, h head dimension

import keras
import numpy as np
from keras import ops

from keras_gpt.layers.base import BaseLayer


@keras.saving.register_keras_serializable("keras_gpt")
class RotaryAngles(BaseLayer):
    """Cosine and sine of the angles by which `apply_rotary` turns, once for all layers.

    Args:
        head_dimension: Width of a head, even.
        rotary_base: Ratio between the fastest and the slowest rotation, about.
            Defaults to 10,000.
        rotary_scaling: As in `GPTConfig`. Defaults to `None`.
        **kwargs: `name`, `dtype` of `keras.layers.Layer`.

    Call arguments:
        token_ids: Integers `(batch, sequence)`, whose length counts.
        positions: Integers `(batch, sequence)`. Defaults to 0, 1, 2, ...

    Returns:
        Two float32 tensors `(..., sequence, 1, head_dimension / 2)`, which broadcast
        over the heads.
    """

    def __init__(
        self, head_dimension, *, rotary_base=10000.0, rotary_scaling=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.head_dimension = head_dimension
        self.rotary_base = rotary_base
        self.rotary_scaling = rotary_scaling

    def build(self, token_ids_shape):
        self.built = True

    def call(self, token_ids, positions=None):
        if positions is None:
            positions = ops.arange(ops.shape(token_ids)[1], dtype="int32")
        frequencies = rotary_frequencies(
            self.head_dimension, self.rotary_base, self.rotary_scaling
        )
        positions = ops.cast(positions, "float32")[..., None, None]
        angles = positions * ops.convert_to_tensor(frequencies)
        return ops.cos(angles), ops.sin(angles)

    def compute_output_spec(self, token_ids, positions=None):
        sequence = token_ids.shape[1:] if positions is None else positions.shape
        shape = (*sequence, 1, self.head_dimension // 2)
        angles = keras.KerasTensor(shape, dtype="float32")
        return angles, keras.KerasTensor(shape, dtype="float32")


def rotary_frequencies(head_dimension, base=10000.0, scaling=None):
    """Angle of each pair between one position and the next, in radians.

    Args:
        head_dimension: Width of a head, even.
        base: Ratio between the fastest and the slowest rotation, about.
        scaling: As `rotary_scaling` of `GPTConfig`.

    Returns:
        NumPy float32 `(head_dimension / 2,)`.

    References:
        - [Chen et al., 2023](https://arxiv.org/abs/2306.15595), linear
        - [Grattafiori et al., 2024](https://arxiv.org/abs/2407.21783), Llama 3.1
    """
    frequencies = float(base) ** -(np.arange(0, head_dimension, 2) / head_dimension)
    if scaling is not None and scaling["type"] == "linear":
        frequencies = frequencies / scaling["factor"]
    elif scaling is not None:
        # how often a pair turns within the original context
        turns = scaling["original_context_length"] * frequencies / (2 * np.pi)
        low, high = scaling["low_frequency_factor"], scaling["high_frequency_factor"]
        kept = np.clip((turns - low) / (high - low), 0, 1)
        frequencies = frequencies * (kept + (1 - kept) / scaling["factor"])
    return frequencies.astype("float32")


def apply_rotary(x, angles):
    """Turn `x` `(batch, sequence, heads, head_dimension)` by angles.

    The pairs are value `i` and value `i + head_dimension / 2`, as in Llama's
    published checkpoints.

    Args:
        x: Queries or keys.
        angles: What `RotaryAngles` returns.
    """
    cos, sin = (ops.cast(part, x.dtype) for part in angles)
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]  # (b, t, n, h/2)
    return ops.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
