"""The uniforms of `keras_gpt.generation`, drawn by TensorFlow operations.

NumPy's `Generator(Philox(seed)).random(n, "float32")`, bit for bit, so that a server
samples what `lm.generate` samples with the same seed. All of it is in int32, which
wraps as C's unsigned integers do: OpenVINO computes 64-bit and unsigned integers as
int32 too, and would silently draw something else.

References:
    - [Salmon et al., 2011](https://doi.org/10.1145/2063384.2063405), Philox
    - [NumPy's seed sequence](
      https://numpy.org/doc/stable/reference/random/bit_generators/generated/numpy.random.SeedSequence.html)
"""

# Axes: b batch, n block of eight uniforms, w word, l limb of 16 bits, the lowest first

import numpy as np
import tensorflow as tf

_LIMB = 0xFFFF
_POOL_SIZE = 4
_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def draw_uniforms(seeds, num_tokens):
    """Uniforms for each row's tokens, from that row's seed alone.

    Args:
        seeds: int32 `(batch,)`, at least 0.
        num_tokens: How many, a Python integer.

    Returns:
        float32 `(batch, num_tokens)` in `[0, 1)`.
    """
    num_blocks = -(-num_tokens // 8)
    limbs = _philox(_counters(num_blocks), _philox_key(seeds))  # (b, n, 4, 4)
    # of each 32 bits the highest 24
    bits = limbs[..., 1::2] * 256 + _shift(limbs[..., 0::2], 8)  # (b, n, 4, 2)
    uniforms = tf.cast(bits, tf.float32) * 2**-24
    uniforms = tf.reshape(uniforms, (-1, 8 * num_blocks))[:, :num_tokens]
    # as `keras_gpt.generation.sampling.draw_uniforms`
    return tf.minimum(uniforms, 1 - 2**-23)


def _shift(x, bits):
    """`x` without its lowest bits; zeros come in from above."""
    shifted = tf.bitwise.right_shift(x, tf.constant(bits, tf.int32))
    return tf.bitwise.bitwise_and(shifted, tf.constant((1 << (32 - bits)) - 1))


def _wrapped(word):
    """A constant of 32 bits as int32 has it."""
    return tf.constant(np.uint32(word).view(np.int32))


def _limbs(value):
    """The four limbs of a constant of 64 bits."""
    return [value >> shift & _LIMB for shift in range(0, 64, 16)]


def _counters(num_blocks):
    """Limbs `(1, n, 4)` of NumPy's counter, which starts at 1."""
    counts = np.arange(1, num_blocks + 1)[:, None] >> np.arange(0, 64, 16)
    return tf.constant(counts[None] & _LIMB, tf.int32)


def _philox_key(seeds):
    """NumPy's `SeedSequence(seed).generate_state(2, "uint64")`: limbs `(b, 2, 4)`."""
    constant = 0x43B0D7E5
    pool = []

    def hash_word(word, multiplier=0x931E8875):
        nonlocal constant
        word = tf.bitwise.bitwise_xor(word, _wrapped(constant))
        constant = constant * multiplier & 0xFFFFFFFF
        word = word * _wrapped(constant)
        return tf.bitwise.bitwise_xor(word, _shift(word, 16))

    for i in range(_POOL_SIZE):
        pool.append(hash_word(seeds if i == 0 else tf.zeros_like(seeds)))
    for source in range(_POOL_SIZE):
        for target in range(_POOL_SIZE):
            if source != target:
                mixed = pool[target] * _wrapped(0xCA01F9DD)
                mixed -= hash_word(pool[source]) * _wrapped(0x4973F715)
                pool[target] = tf.bitwise.bitwise_xor(mixed, _shift(mixed, 16))
    constant = 0x8B51F9DD
    state = tf.stack([hash_word(word, 0x58F38DED) for word in pool], axis=1)  # (b, 4)
    limbs = tf.stack([tf.bitwise.bitwise_and(state, _LIMB), _shift(state, 16)], axis=2)
    return tf.reshape(limbs, (-1, 2, 4))


def _philox(counter, key):
    """Philox 4x64 with ten rounds: limbs `(b, n, 4, 4)`, for counters below 2**64."""
    multipliers = tf.constant([_limbs(value) for value in _MULTIPLIERS])
    steps = [[_limbs(i * value) for value in _WEYL] for i in range(_ROUNDS)]
    keys = _carry(key[:, None] + tf.constant(steps))  # (b, round, 2, 4)
    even = tf.stack([counter, tf.zeros_like(counter)], axis=2)  # (b, n, 2, 4)
    odd = tf.zeros_like(even)
    for i in range(_ROUNDS):
        # each takes the other's product
        product = tf.reverse(_multiply(even, multipliers), [2])
        low, high = tf.split(product, 2, axis=3)
        mixed = tf.bitwise.bitwise_xor(high, odd)
        even = tf.bitwise.bitwise_xor(mixed, keys[:, i : i + 1])
        odd = low
    return tf.reshape(tf.stack([even, odd], axis=3), (-1, counter.shape[1], 4, 4))


def _multiply(x, constants):
    """Limbs `(b, n, w, 8)` of the products of `x` and constants `(w, 4)`."""
    products = x[..., None] * constants[:, None]  # (b, n, w, l, l)
    low = _sum_diagonals(tf.bitwise.bitwise_and(products, _LIMB))
    high = _sum_diagonals(_shift(products, 16))
    rest = [[0, 0]] * 3
    sums = tf.pad(low, [*rest, [0, 1]]) + tf.pad(high, [*rest, [1, 0]])
    return _carry(sums)


def _sum_diagonals(products):
    """Sums `(b, n, w, 7)` of `(b, n, w, 4, 4)` over limbs of the same place."""
    _, n, w, _, _ = products.shape
    # rows of 8 cut anew into rows of 7: each stands one place further right
    rows = tf.pad(products, [[0, 0]] * 4 + [[0, 4]])
    cells = tf.reshape(rows, (-1, n, w, 32))[..., :28]
    return tf.reduce_sum(tf.reshape(cells, (-1, n, w, 4, 7)), axis=3)


def _carry(sums):
    """Limbs, the lowest first, with what exceeds 16 bits put on the next one."""
    limbs, value = [], None
    for column in tf.unstack(sums, axis=-1):
        if value is not None:
            column += tf.bitwise.right_shift(value, 16)
        value = column
        limbs.append(tf.bitwise.bitwise_and(value, _LIMB))
    return tf.stack(limbs, axis=-1)
