"""From logits to the next token ids: pure functions of tensors.

Randomness is an input: the same uniforms choose the same ids on every backend.
"""

# Axes: b batch, v vocabulary, n block, i place in a block

import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.generation.truncation import BLOCK_SIZE, in_blocks, truncation_mask

_RANKED_AT_ONCE = 1024  # in NumPy


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


def adjust(logits, counts, logit_bias, presence_penalty, frequency_penalty):
    """Make tokens likelier or less likely, as OpenAI's interface defines it.

    Args:
        logits: `(batch, vocabulary)`.
        counts: float32 `(batch, vocabulary)`, how often each token was chosen.
        logit_bias: `(batch, vocabulary)`, added to the logits.
        presence_penalty: `(batch,)`, taken from those that were chosen.
        frequency_penalty: `(batch,)`, taken from them for each time.

    Returns:
        `(batch, vocabulary)`.
    """
    is_there = ops.cast(counts > 0, "float32")
    penalty = presence_penalty[:, None] * is_there + frequency_penalty[:, None] * counts
    return logits + logit_bias - penalty


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
    controls = temperature, top_k, top_p, min_p, uniforms
    rows = backend.in_numpy(logits, *controls)
    if rows is not None:
        ids = [choose_in_numpy(*row) for row in zip(*rows, strict=True)]
        return ops.convert_to_tensor(np.array(ids, "int32"))
    return choose_by_ops(logits, *controls)


def choose_by_ops(logits, temperature, top_k, top_p, min_p, uniforms):
    """As `choose`, where the logits are the backend's."""
    blocks = in_blocks(logits, -np.inf)
    largest = ops.max(blocks, axis=-1)  # (b, n)
    best_block = _first(ops.equal(largest, ops.max(largest, axis=-1, keepdims=True)))
    candidates = _take_block(blocks, best_block)  # (b, i)
    best = ops.max(candidates, axis=-1, keepdims=True)
    greedy = best_block * BLOCK_SIZE + _first(ops.equal(candidates, best))
    is_sampled = temperature > 0

    def sample():
        # below 1e-4 sampling is greedy but for ties, and the quotient would overflow
        safe_temperature = ops.maximum(ops.where(is_sampled, temperature, 1.0), 1e-4)
        weights = ops.exp((logits - best) / safe_temperature[:, None])
        is_kept = truncation_mask(weights, top_k, top_p, min_p)
        drawn = _draw(ops.where(is_kept, weights, 0.0), uniforms)
        return ops.where(ops.logical_and(is_sampled, drawn >= 0), drawn, greedy)

    return ops.cond(ops.any(is_sampled), sample, lambda: greedy)


def _draw(weights, uniforms):
    """Invert the cumulative sum of `(b, v)`, first of blocks, then in one of them.

    XLA's parallel sums aren't monotonic: what has no weight is passed over.

    Returns:
        int32 `(b,)`, -1 where nothing has weight.
    """
    blocks = in_blocks(weights, 0.0)
    sums = ops.sum(blocks, axis=-1)  # (b, n)
    cumulative = ops.cumsum(sums, axis=-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    is_beyond = ops.logical_and(sums > 0, cumulative > target)
    block = _first(is_beyond)
    index = block[:, None]
    before = ops.take_along_axis(cumulative - sums, index, axis=1)
    inside = _take_block(blocks, block)  # (b, i)
    is_beyond_inside = before + ops.cumsum(inside, axis=-1) > target
    # rounding may hide the last one
    place = ops.arange(BLOCK_SIZE, dtype="int32")
    last = ops.max(ops.where(inside > 0, place, 0), axis=-1, keepdims=True)
    is_beyond_inside = ops.logical_or(is_beyond_inside, ops.equal(place, last))
    place = _first(ops.logical_and(inside > 0, is_beyond_inside))
    drawn = block * BLOCK_SIZE + place
    return ops.where(ops.any(is_beyond, axis=-1), drawn, -1)


def choose_in_numpy(logits, temperature, top_k, top_p, min_p, uniform):
    """As `choose`, for one row.

    Args:
        logits: NumPy float32 `(vocabulary,)`.
        temperature: 0 is greedy.
        top_k: The size of the vocabulary for no limit.
        top_p: 1 for no limit.
        min_p: 0 for no limit.
        uniform: In `[0, 1)`.

    Returns:
        A token id.
    """
    best = logits.argmax()
    if temperature == 0 or not np.isfinite(logits[best]):
        return best
    temperature = np.maximum(temperature, np.float32(1e-4))

    def weigh(some):
        weights = some - logits[best]
        weights /= temperature
        return np.exp(weights, out=weights)

    size = len(logits)
    least = -np.inf
    if min_p > 0:
        least = logits[best] + temperature * np.log(min_p)
    if top_k < size or top_p < 1:
        few = min(top_k if top_k < size else _RANKED_AT_ONCE, size)
        ranked, weights, reached = _rank(logits, few, weigh)
        target = top_p * (reached[-1] if top_k < size else weigh(logits).sum())
        while top_k >= size and reached[-1] < target and few < size:
            few = min(8 * few, size)
            ranked, weights, reached = _rank(logits, few, weigh)
        is_needed = reached - weights < target
        is_needed[0] = True  # though `top_p` may be 0 in float32
        least = max(least, ranked[is_needed][-1])
    if least == -np.inf:
        return _draw_in_numpy(weigh(logits), uniform)
    kept = np.flatnonzero(logits >= least)
    return kept[_draw_in_numpy(weigh(logits[kept]), uniform)]


def _rank(logits, few, weigh):
    """The largest of `(v,)`, descending, their weights, and the sums of these."""
    ranked = np.sort(np.partition(logits, -few)[-few:])[::-1]
    weights = weigh(ranked)
    return ranked, weights, np.cumsum(weights, dtype="float64")


def _draw_in_numpy(weights, uniform):
    """As `_draw`, of all of `(v,)`, in float64."""
    starts = np.arange(0, len(weights), BLOCK_SIZE)
    reached = np.cumsum(np.add.reduceat(weights, starts), dtype="float64")
    target = uniform * reached[-1]
    block = np.searchsorted(reached, target, side="right")
    inside = weights[starts[block] :][:BLOCK_SIZE].astype("float64")
    inside[0] += reached[block - 1] if block else 0
    # rounding may hide the last one
    last = np.flatnonzero(weights[starts[block] :][:BLOCK_SIZE])[-1]
    place = np.searchsorted(np.cumsum(inside), target, side="right")
    return starts[block] + min(place, last)


def _take_block(blocks, index):
    """Of `(b, n, i)` the block of each row's index `(b,)`, `(b, i)`."""
    return ops.take_along_axis(blocks, index[:, None, None], axis=1)[:, 0]


def _first(is_true):
    """Where the first true one of each row is, 0 where none is, int32 `(b,)`."""
    # of integers: of floats Keras also tells 0 from -0, by an op that OpenVINO lacks
    return ops.cast(ops.argmax(ops.cast(is_true, "int32"), axis=-1), "int32")


def likeliest(logits, count):
    """The likeliest tokens' log-probabilities in nats, and behind them their ids.

    Args:
        logits: float32 `(..., vocabulary)`.
        count: How many tokens, at most the vocabulary's size.

    Returns:
        float32 `(..., 2 * count)`, the likeliest first: a float holds an id exactly,
        up to 2²⁴.
    """
    values, ids = ops.top_k(logits, count)
    values -= ops.logsumexp(logits, axis=-1, keepdims=True)
    return ops.concatenate([values, ops.cast(ids, values.dtype)], axis=-1)


def chosen_log_probs(logits, token_ids):
    """Log-probability in nats `(batch,)` of `token_ids` under `logits` themselves."""
    chosen = ops.take_along_axis(logits, token_ids[:, None], axis=-1)[:, 0]
    return chosen - ops.logsumexp(logits, axis=-1)
