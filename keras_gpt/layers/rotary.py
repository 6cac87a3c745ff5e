"""Rotary positions.

Each pair of a head's values turns by an angle that grows with the position, so that
the product of a query and a key depends on their distance.

References:
    - [Su et al., 2021](https://arxiv.org/abs/2104.09864)
"""

# Axes: b batch, t position, n head, h head dimension

import numpy as np
from keras import ops


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


def rotary_cos_sin(positions, head_dimension, base=10000.0, scaling=None):
    """Cosine and sine of each rotation angle.

    Args:
        positions: Integers, `(sequence,)` or `(batch, sequence)`.
        head_dimension: Width of a head, even.
        base: Ratio between the fastest and the slowest rotation, about.
        scaling: As `rotary_scaling` of `GPTConfig`.

    Returns:
        Two float32 tensors `(..., sequence, 1, head_dimension / 2)`, which broadcast
        over the heads.
    """
    frequencies = rotary_frequencies(head_dimension, base, scaling)
    angles = ops.cast(positions, "float32")[..., None, None] * ops.convert_to_tensor(
        frequencies
    )
    return ops.cos(angles), ops.sin(angles)


def apply_rotary(x, cos, sin):
    """Rotate `x` `(batch, sequence, heads, head_dimension)` by the given angles.

    The pairs are value `i` and value `i + head_dimension / 2`, as in Llama's
    published checkpoints.
    """
    cos = ops.cast(cos, x.dtype)
    sin = ops.cast(sin, x.dtype)
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]  # (b, t, n, h/2)
    return ops.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
