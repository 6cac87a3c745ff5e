"""Rotary positions.

Each pair of a head's values turns by an angle that grows with the position, so that
the product of a query and a key depends on their distance.

References:
    - [Su et al., 2021](https://arxiv.org/abs/2104.09864)
"""

# Axes: b batch, t position, n head, h head dimension

from keras import ops


def rotary_cos_sin(positions, head_dimension, base=10000.0):
    """Cosine and sine of each rotation angle.

    Args:
        positions: Integers, `(sequence,)` or `(batch, sequence)`.
        head_dimension: Width of a head, even.
        base: Ratio between the slowest and the fastest rotation, about.

    Returns:
        Two float32 tensors `(..., sequence, 1, head_dimension / 2)`, which broadcast
        over the heads.
    """
    exponents = ops.arange(0, head_dimension, 2, dtype="float32") / head_dimension
    frequencies = base**-exponents
    angles = ops.cast(positions, "float32")[..., None, None] * frequencies
    return ops.cos(angles), ops.sin(angles)


def apply_rotary(x, cos, sin):
    """Rotate `x` `(batch, sequence, heads, head_dimension)` by the given angles.

    The pairs are value `i` and value `i + head_dimension / 2`, as in Llama's
    published checkpoints.
    """
    cos = ops.cast(cos, x.dtype)
    sin = ops.cast(sin, x.dtype)
    first, second = ops.split(x, 2, axis=-1)  # (b, t, n, h/2)
    return ops.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
