"""From logits to the next token ids: pure functions of tensors.

Randomness is an input: the same uniforms choose the same ids on every backend.
"""

# Axes: b batch, v vocabulary

import numpy as np
from keras import ops


def draw_uniforms(seeds, num_tokens, start=0):
    """Uniforms for each row's tokens, from that row's seed alone.

    Args:
        seeds: One integer a row, at least 0. An exported graph knows those below 2³¹,
            and draws the same.
        num_tokens: How many tokens; a smaller number gives a prefix.
        start: The first token, so that a long text is drawn for piece by piece.

    Returns:
        NumPy float32 `(batch, num_tokens)` in `[0, 1)`.
    """
    seeds = [int(seed) for seed in seeds]
    folded = np.zeros(len(seeds), "int32")
    words = -(-max(seeds, default=0).bit_length() // 32)
    for word in reversed(range(words)):
        bits = [seed >> 32 * word & 0xFFFFFFFF for seed in seeds]
        folded = _mix(folded, np.right_shift) ^ np.array(bits, "uint32").view("int32")
    counters = np.arange(start, start + num_tokens, dtype="int32")
    bits = random_bits(folded, counters, np.right_shift)
    # at most 1 - 2**-23, so that the product with any sum rounds to below the sum
    return np.minimum(bits, 2**24 - 2).astype("float32") / 2**24


def random_bits(seeds, counters, right_shift):
    """24 random bits for each seed and counter, with which no state goes along.

    It takes NumPy's and TensorFlow's arrays alike, and only what int32 has: OpenVINO
    computes wider and unsigned integers as int32 too, and would silently differ.

    Args:
        seeds: int32 `(batch,)`.
        counters: int32 `(n,)`, at least 0.
        right_shift: `np.right_shift` or `tf.bitwise.right_shift`.

    Returns:
        int32 `(batch, n)`.
    """
    # so that no seed is a counter, which would give 0
    keys = _mix(seeds ^ (0x9E3779B9 - 2**32), right_shift)
    words = _mix(_mix(counters, right_shift) ^ keys[:, None], right_shift)
    return right_shift(words, 8) & 0xFFFFFF


def _mix(x, right_shift):
    """Permute the integers of 32 bits, 0 alone staying what it is.

    References:
        - [Wellons, 2018](https://nullprogram.com/blog/2018/07/31/), "lowbias32"
    """
    # in int32 the shifted sign comes along and is masked, and products wrap
    x = (x ^ (right_shift(x, 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ (right_shift(x, 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ (right_shift(x, 16) & 0xFFFF)


def penalize_repetition(logits, seen, penalty):
    """Make the tokens that were seen less likely.

    Args:
        logits: `(batch, vocabulary)`.
        seen: Booleans `(batch, vocabulary)`, the tokens in the prompt and so far.
        penalty: `(batch,)`; 1 changes nothing, more makes repetition rarer.

    Returns:
        `(batch, vocabulary)`.

    References:
        - [Keskar et al., 2019](https://arxiv.org/abs/1909.05858), section 4.1
    """
    penalty = penalty[:, None]
    penalized = ops.where(logits > 0, logits / penalty, logits * penalty)
    return ops.where(seen, penalized, logits)


def truncation_mask(probabilities, top_k, top_p, min_p):
    """The tokens that sampling may choose; the likeliest always is one.

    Args:
        probabilities: `(batch, vocabulary)`, each row summing to 1.
        top_k: Integers `(batch,)`: only the `top_k` likeliest, and what is as likely
            as the last of them.
        top_p: `(batch,)`: of those, the fewest likeliest that together have at least
            the fraction `top_p` of their probability.
        min_p: `(batch,)`: only those at least `min_p` times as likely as the
            likeliest.

    Returns:
        Booleans `(batch, vocabulary)`.

    References:
        - [Holtzman et al., 2020](https://arxiv.org/abs/1904.09751), top-p
        - [Nguyen et al., 2024](https://arxiv.org/abs/2407.01082), min-p
    """
    # descending; the probabilities themselves, not their places, set the thresholds
    ranked = -ops.sort(-probabilities, axis=-1)  # (b, v)
    ranks = ops.arange(ranked.shape[1], dtype="int32")
    in_top_k = ops.where(ranks < top_k[:, None], ranked, 0.0)
    mass = ops.sum(in_top_k, axis=-1, keepdims=True)
    mass_before = ops.cumsum(in_top_k, axis=-1) - in_top_k
    kept = ops.logical_and(in_top_k > 0, mass_before < top_p[:, None] * mass)
    threshold = ops.min(ops.where(kept, ranked, 2.0), axis=-1, keepdims=True)
    threshold = ops.maximum(threshold, min_p[:, None] * ranked[:, :1])
    return probabilities >= ops.minimum(threshold, ranked[:, :1])


def choose(logits, *, temperature, top_k, top_p, min_p, uniforms):
    """The next token of each row.

    Args:
        logits: float32 `(batch, vocabulary)`.
        temperature: `(batch,)`; 0 is greedy.
        top_k: Integers `(batch,)`; the size of the vocabulary for no limit.
        top_p: `(batch,)`; 1 for no limit.
        min_p: `(batch,)`; 0 for no limit.
        uniforms: `(batch,)` in `[0, 1)`: where in the cumulative distribution, in
            the order of the ids, to choose.

    Returns:
        Token ids, int32 `(batch,)`.
    """
    # of integers: of floats Keras also tells 0 from -0, by an op that OpenVINO lacks
    is_best = ops.equal(logits, ops.max(logits, axis=-1, keepdims=True))
    greedy = ops.cast(ops.argmax(ops.cast(is_best, "int32"), axis=-1), "int32")
    is_sampled = temperature > 0
    vocab_size = logits.shape[1]
    is_truncated = ops.logical_or(
        top_k < vocab_size, ops.logical_or(top_p < 1, min_p > 0)
    )

    def sample():
        # below 1e-4 sampling is greedy but for ties, and the quotient would overflow
        safe_temperature = ops.maximum(ops.where(is_sampled, temperature, 1.0), 1e-4)
        below_best = logits - ops.max(logits, axis=-1, keepdims=True)
        probabilities = ops.softmax(below_best / safe_temperature[:, None], axis=-1)
        weights = ops.cond(
            ops.any(is_truncated),
            lambda: ops.where(
                truncation_mask(probabilities, top_k, top_p, min_p), probabilities, 0.0
            ),
            lambda: probabilities,
        )
        cumulative = ops.cumsum(weights, axis=-1)
        target = uniforms[:, None] * cumulative[:, -1:]
        # XLA's parallel sum isn't monotonic: never draw where the weight is 0
        is_beyond = ops.logical_and(weights > 0, cumulative > target)
        drawn = ops.cast(ops.argmax(is_beyond, axis=-1), "int32")
        drawn = ops.where(ops.any(is_beyond, axis=-1), drawn, greedy)
        return ops.where(is_sampled, drawn, greedy)

    return ops.cond(ops.any(is_sampled), sample, lambda: greedy)


def chosen_log_probs(logits, token_ids):
    """Log-probability in nats `(batch,)` of `token_ids` under `logits` themselves."""
    chosen = ops.take_along_axis(logits, token_ids[:, None], axis=-1)[:, 0]
    return chosen - ops.logsumexp(logits, axis=-1)
