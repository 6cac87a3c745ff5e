"""From logits to the next token ids: pure functions of tensors.

Randomness is an input: the same uniforms choose the same ids on every backend.
"""

# Axes: b batch, v vocabulary, n block, i place in a block

import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.generation.truncation import (
    BLOCK_SIZE,
    in_blocks,
    is_kept,
    nucleus_mass,
)

# of a uniform, so that its product with any sum rounds to below the sum
_MOST_BITS = 2**24 - 2
_ROWS_AT_ONCE = 4


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
    bits = _random_bits(folded, counters, np.right_shift)
    return np.minimum(bits, _MOST_BITS).astype("float32") / 2**24


def draw_uniforms_by_ops(seeds, num_tokens):
    """What `draw_uniforms` draws, bit for bit, of the backend's seeds.

    Args:
        seeds: int32 `(batch,)`, at least 0.
        num_tokens: How many tokens.

    Returns:
        float32 `(batch, num_tokens)` in `[0, 1)`.
    """
    counters = ops.arange(num_tokens, dtype="int32")
    bits = _random_bits(seeds, counters, ops.right_shift)
    return ops.cast(ops.minimum(bits, _MOST_BITS), "float32") / 2**24


def _random_bits(seeds, counters, right_shift):
    """24 random bits for each seed and counter, with which no state goes along.

    It takes arrays of NumPy and of the backend alike, and only what int32 has: OpenVINO
    computes wider and unsigned integers as int32 too, and would silently differ.

    Args:
        seeds: int32 `(batch,)`.
        counters: int32 `(n,)`, at least 0.
        right_shift: `np.right_shift` or `ops.right_shift`.

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
        top_k: Integers `(batch,)`: only the `top_k` likeliest, and what is as likely
            as the last of them; the size of the vocabulary for no limit.
        top_p: `(batch,)`: of those, the fewest likeliest that together have at least
            the fraction `top_p` of their probability; 1 for no limit.
        min_p: `(batch,)`: only those at least `min_p` times as likely as the
            likeliest; 0 for no limit.
        uniforms: `(batch,)` in `[0, 1)`: where in the cumulative distribution, in the
            order of the ids, to choose. A token that `top_k` or `top_p` leaves out is
            drawn again, by a uniform that follows from this one.

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
        limits = (limit[:, None] for limit in (top_k, top_p, min_p))
        drawn = _sample(weights, *limits, uniforms, is_sampled)
        return ops.where(ops.logical_and(is_sampled, drawn >= 0), drawn, greedy)

    return ops.cond(ops.any(is_sampled), sample, lambda: greedy)


def _sample(weights, top_k, top_p, min_p, uniforms, is_asked):
    """Draw from what the limits `(b, 1)` keep of `(b, v)`: ids `(b,)`, -1 for none."""
    mass = nucleus_mass(weights, top_k, top_p)
    rows = min(weights.shape[0] or _ROWS_AT_ONCE, _ROWS_AT_ONCE)

    def draw(weights, uniforms, lowest, top_k, mass, min_p):
        is_allowed = ops.logical_and(weights > lowest, weights >= min_p)
        ids = _draw(ops.where(is_allowed, weights, 0.0), uniforms)
        place = ops.maximum(ids, 0)[:, None]
        drawn = ops.take_along_axis(weights, place, axis=1)
        is_out = ops.logical_not(is_kept(weights, drawn, top_k, mass))[:, 0]
        return ids, drawn, ops.logical_and(is_out, ids >= 0)

    def draw_again(ids, drawn, uniforms, is_left):
        # seldom are they many: a few rows at a time
        number = ops.cumsum(ops.cast(is_left, "int32"))[:, None]
        is_row = ops.equal(number, ops.arange(1, rows + 1, dtype="int32"))
        is_row = ops.logical_and(is_left[:, None], is_row)  # (b, r)
        is_drawn = ops.any(is_row, axis=1)
        row = ops.argmax(ops.cast(is_row, "int32"), axis=0)
        row = ops.where(ops.any(is_row, axis=0), row, row[:1])
        seeds = ops.cast(uniforms * 2**24, "int32")
        following = draw_uniforms_by_ops(seeds, 1)[:, 0]
        uniforms = ops.where(is_drawn, following, uniforms)
        few = weights, uniforms, drawn, *limits
        new_ids, new_drawn, is_out = draw(*(ops.take(x, row, axis=0) for x in few))

        def put(new, old):
            new = ops.sum(ops.where(is_row, new, ops.zeros_like(new)), axis=1)
            return ops.where(is_drawn, new, old)

        ids = put(new_ids, ids)
        drawn = put(new_drawn[:, 0], drawn[:, 0])[:, None]
        is_out = ops.any(ops.logical_and(is_row, is_out), axis=1)
        is_left = ops.where(is_drawn, is_out, is_left)
        return ids, drawn, uniforms, is_left

    limits = top_k, mass, ops.minimum(min_p, 1.0)
    lowest = -ops.ones_like(top_p)
    ids, drawn, is_out = draw(weights, uniforms, lowest, *limits)
    state = ids, drawn, uniforms, ops.logical_and(is_asked, is_out)
    return ops.while_loop(lambda *state: ops.any(state[-1]), draw_again, state)[0]


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
    weights = logits - logits[best]
    weights /= np.maximum(temperature, np.float32(1e-4))
    np.exp(weights, out=weights)
    mass = np.inf
    if top_p < 1:
        is_all = top_k >= len(weights)
        some = weights if is_all else np.partition(weights, -top_k)[-top_k:]
        mass = top_p * some.sum(dtype="float64")
    ids = None if min_p <= 0 else np.flatnonzero(weights >= min(min_p, 1))
    weights = weights if ids is None else weights[ids]
    while len(weights):
        place = _draw_in_numpy(weights, uniform)
        drawn = place if ids is None else ids[place]
        if top_k >= len(logits) and mass == np.inf:
            return drawn
        above = np.flatnonzero(weights > weights[place])
        weights = weights[above]
        if len(above) < top_k and weights.sum(dtype="float64") < mass:
            return drawn
        ids = above if ids is None else ids[above]
        uniform = draw_uniforms([int(uniform * 2**24)], 1)[0, 0]
    return best


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
    values = values - backend.logsumexp(logits)
    return ops.concatenate([values, ops.cast(ids, values.dtype)], axis=-1)


def chosen_log_probs(logits, token_ids):
    """Log-probabilities in nats of ids `(...)` under logits `(..., vocabulary)`."""
    chosen = ops.take_along_axis(logits, token_ids[..., None], axis=-1)
    return (chosen - backend.logsumexp(logits))[..., 0]
