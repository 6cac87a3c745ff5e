"""The uniforms of `keras_gpt.generation`, drawn by TensorFlow operations.

NumPy's `Generator(Philox(seed)).random(n, "float32")`, bit for bit, so that a server
samples what `lm.generate` samples with the same seed.

References:
    - [Salmon et al., 2011](https://doi.org/10.1145/2063384.2063405), Philox
    - [NumPy's seed sequence](
      https://numpy.org/doc/stable/reference/random/bit_generators/generated/numpy.random.SeedSequence.html)
"""

# Axes: b batch, n block of eight uniforms

import tensorflow as tf

_MASK = 0xFFFFFFFF
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
    key = _philox_key(tf.cast(seeds, tf.uint64))
    num_blocks = -(-num_tokens // 8)
    # NumPy's counter starts at 1
    counter = tf.cast(tf.range(1, num_blocks + 1), tf.uint64) + key[0] * 0  # (b, n)
    words = _philox(counter, key)  # 4 of (b, n)
    halves = [part for word in words for part in (word & _MASK, _shift(word, 32))]
    bits = tf.stack([_shift(half, 8) for half in halves], axis=-1)  # (b, n, 8)
    uniforms = tf.cast(bits, tf.float32) * 2**-24
    uniforms = tf.reshape(uniforms, (-1, 8 * num_blocks))[:, :num_tokens]
    # as `keras_gpt.generation.sampling.draw_uniforms`
    return tf.minimum(uniforms, 1 - 2**-23)


def _shift(x, bits):
    return tf.bitwise.right_shift(x, tf.constant(bits, tf.uint64))


def _philox_key(seeds):
    """NumPy's `SeedSequence(seed).generate_state(2, "uint64")`: 2 of `(b, 1)`."""
    constant = 0x43B0D7E5
    pool = []

    def hash_word(word, multiplier=0x931E8875):
        nonlocal constant
        word = word ^ constant
        constant = constant * multiplier & _MASK
        word = word * constant & _MASK
        return word ^ _shift(word, 16)

    for i in range(_POOL_SIZE):
        pool.append(hash_word(seeds if i == 0 else tf.zeros_like(seeds)))
    for source in range(_POOL_SIZE):
        for target in range(_POOL_SIZE):
            if source != target:
                # 2**32 keeps the difference from wrapping below zero
                difference = pool[target] * 0xCA01F9DD + (
                    2**32 - (hash_word(pool[source]) * 0x4973F715 & _MASK)
                )
                mixed = difference & _MASK
                pool[target] = mixed ^ _shift(mixed, 16)
    constant = 0x8B51F9DD
    state = [hash_word(word, 0x58F38DED) for word in pool]
    return [(low + high * 2**32)[:, None] for low, high in (state[:2], state[2:])]


def _philox(counter, key):
    """Philox 4x64 with ten rounds: 4 of `(b, n)`, for counters below 2**64."""
    zero = tf.zeros_like(counter)
    c0, c1, c2, c3 = counter, zero, zero, zero
    k0, k1 = key
    for _ in range(_ROUNDS):
        low0, high0 = _multiply(c0, _MULTIPLIERS[0])
        low1, high1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return c0, c1, c2, c3


def _multiply(x, constant):
    """Low and high 64 bits of the product of `x` and a 64-bit constant."""
    low, high = x & _MASK, _shift(x, 32)
    constant_low, constant_high = constant & _MASK, constant >> 32
    cross1, cross2 = low * constant_high, high * constant_low
    middle = _shift(low * constant_low, 32) + (cross1 & _MASK) + (cross2 & _MASK)
    carried = _shift(cross1, 32) + _shift(cross2, 32) + _shift(middle, 32)
    return x * tf.constant(constant, tf.uint64), high * constant_high + carried
