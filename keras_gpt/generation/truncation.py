"""Which tokens may be sampled, found without sorting the vocabulary.

The few largest logits come from the blocks with the largest maxima. Seldom does more
have to be known: then the candidates in these blocks are searched, or else the row.
"""

# Axes: b batch, v vocabulary or candidates of it, n block, i place in a block,
#       k the few largest

from keras import ops

BLOCK_SIZE = 64
_FEW = 64
_LEAST_WEIGHT = -69.0  # exp of it, 1e-30, is nothing beside the largest weight, 1


def in_blocks(x, filling):
    """Cut `(b, v)` into blocks `(b, n, i)`, the last one filled up."""
    missing = -x.shape[1] % BLOCK_SIZE
    if missing:
        x = ops.pad(x, [[0, 0], [0, missing]], constant_values=filling)
    return ops.reshape(x, (-1, x.shape[1] // BLOCK_SIZE, BLOCK_SIZE))


def weigh(logits, row):
    """Weights of `(b, v)`, proportional to the probabilities, 1 for the likeliest."""
    return ops.exp((logits - row["best"]) / row["temperature"])


def least_ranked(row, size):
    """The least logit that sampling may choose; all from it on are kept.

    Args:
        row: Tensors `(b, 1)`, but for `ranked`, by name:
            `best`, the largest logit; `temperature`;
            `top_k`, integers: only the `top_k` likeliest, and what is as likely as the
            last of them;
            `top_p`: of those, the fewest likeliest that together have at least the
            fraction `top_p` of their probability;
            `min_p`: only those at least `min_p` times as likely as the likeliest;
            `total`: the sum of all weights, where `top_p` alone is a limit;
            `ranked`: the few largest logits, descending, `(b, k)`.
        size: Of the vocabulary.

    Returns:
        `(b, 1)`, and whether more than is ranked must be known for it.

    References:
        - [Holtzman et al., 2020](https://arxiv.org/abs/1904.09751), top-p
        - [Nguyen et al., 2024](https://arxiv.org/abs/2407.01082), min-p
    """
    ranked, top_k, top_p = row["ranked"], row["top_k"], row["top_p"]
    few = ranked.shape[1]
    is_counted = top_k < size
    is_limited = ops.logical_or(is_counted, top_p < 1)
    weights = weigh(ranked, row)
    weights = ops.where(ops.arange(few, dtype="int32") < top_k, weights, 0.0)
    known = ops.sum(weights, axis=-1, keepdims=True)
    target = top_p * ops.where(is_counted, known, row["total"])
    least = _last_needed(ranked, weights, 0.0, target)
    least = ops.where(is_limited, least, -float("inf"))
    is_beyond = ops.logical_or(is_counted, known < target)
    is_beyond = ops.logical_and(is_beyond, top_k > few)
    is_beyond = ops.logical_and(is_beyond, is_limited)
    return _limit(least, row), is_beyond


def _limit(least, row):
    """The larger of `least` and what `min_p` asks for."""
    lowest = row["best"] + row["temperature"] * ops.log(row["min_p"])
    return ops.minimum(ops.maximum(least, lowest), row["best"])


def search(logits, weights, row):
    """As `least_ranked`, of rows that keep more than is ranked.

    Args:
        logits: `(b, v)`.
        weights: Of them.
        row: As of `least_ranked`.
    """
    size = logits.shape[1]
    lowest = row["best"] + _LEAST_WEIGHT * row["temperature"]
    target = ops.cast(row["top_k"], "float32")
    by_count = row["top_k"] < size
    by_mass = row["top_p"] < 1

    def of_top_k():
        ones = ops.ones_like(weights)
        least = _bisect(logits, ones, row, target, lowest, by_count)
        least = ops.where(by_count, least, lowest)
        # of those that are as likely as the last, as many as there is room for
        is_above = ops.cast(logits > least, "float32")
        ties = target - ops.sum(is_above, axis=-1, keepdims=True)
        mass = ops.sum(is_above * weights, axis=-1, keepdims=True)
        mass = mass + ties * weigh(least, row)
        return least, ops.where(by_count, mass, row["total"])

    least, mass = ops.cond(ops.any(by_count), of_top_k, lambda: (lowest, row["total"]))

    def of_top_p():
        # what is below this edge has, all together, less than may be left out
        share = ops.log((1 - row["top_p"]) * mass / size)
        low = ops.maximum(least, row["best"] + row["temperature"] * share)
        found = _bisect(logits, weights, row, row["top_p"] * mass, low, by_mass)
        return ops.where(by_mass, found, least)

    return _limit(ops.cond(ops.any(by_mass), of_top_p, lambda: least), row)


def _bisect(logits, measures, row, target, low, is_asked):
    """The largest logit such that it and those above reach a target.

    Args:
        logits: `(b, v)`.
        measures: What of each is to reach the target: 1, or its weight.
        row: As of `least_ranked`.
        target: `(b, 1)`.
        low: A logit below the one that is searched, `(b, 1)`.
        is_asked: Rows to search in; the others give any logit.
    """
    ranked = row["ranked"]
    is_count = ops.min(measures, axis=-1, keepdims=True) == 1

    def measure(logits):
        return ops.where(is_count, 1.0, weigh(logits, row))

    def above(edge):
        kept = ops.where(logits > edge, measures, 0.0)
        return ops.sum(kept, axis=-1, keepdims=True)

    def is_open(low, high, reached):
        # each that is still needed counts at least so much: are they more than few?
        is_far = target - reached > (ranked.shape[1] - 1) * measure(low)
        middle = (low + high) / 2
        is_between = ops.logical_and(low < middle, middle < high)
        return ops.logical_and(ops.logical_and(is_asked, is_far), is_between)

    def step(low, high, reached):
        is_moved = is_open(low, high, reached)
        middle = (low + high) / 2
        more = above(middle)
        is_enough = more >= target
        is_lower = ops.logical_and(is_moved, ops.logical_not(is_enough))
        is_moved = ops.logical_and(is_moved, is_enough)
        return (
            ops.where(is_moved, middle, low),
            ops.where(is_lower, middle, high),
            ops.where(is_lower, more, reached),
        )

    high = ops.min(ranked, axis=-1, keepdims=True)
    _, high, reached = ops.while_loop(
        lambda *state: ops.any(is_open(*state)), step, (low, high, above(high))
    )
    below = ranked_logits(ops.where(logits <= high, logits, -float("inf")))
    searched = _last_needed(below, measure(below), reached, target)
    counted = measure(ranked)
    is_ranked = ops.sum(counted, axis=-1, keepdims=True) >= target
    found = _last_needed(ranked, counted, 0.0, target)
    return ops.where(is_ranked, found, searched)


def _last_needed(ranked, measures, reached, target):
    """The last of descending logits before which a target isn't reached, `(b, 1)`."""
    before = reached + ops.cumsum(measures, axis=-1) - measures
    is_needed = ops.logical_and(measures > 0, before < target)
    largest = ops.max(ranked, axis=-1, keepdims=True)
    needed = ops.where(is_needed, ranked, largest)
    return ops.min(needed, axis=-1, keepdims=True)


def likeliest_blocks(blocks, maxima):
    """Those of `(b, n, i)` with the largest maxima `(b, n)`, in their order.

    Returns:
        The blocks `(b, k, i)`, which of all they are, int32 `(b, k)`, and the logit
        `(b, 1)` above which all are in them.
    """
    if blocks.shape[1] <= _FEW:
        index = ops.arange(blocks.shape[1], dtype="int32")
        index = index + ops.zeros_like(maxima, dtype="int32")
        return blocks, index, ops.full_like(maxima[:, :1], -float("inf"))
    largest, index = ops.top_k(maxima, _FEW)
    index = ops.sort(ops.cast(index, "int32"), axis=-1)
    chosen = ops.take_along_axis(blocks, index[:, :, None], axis=1)
    return chosen, index, ops.min(largest, axis=-1, keepdims=True)


def ranked_logits(logits):
    """The few largest of `(b, v)`, descending, `(b, k)`.

    Don't slice the result: XLA would take the slice of a sort of them all.
    """
    if logits.shape[1] > _FEW * BLOCK_SIZE:
        blocks = in_blocks(logits, -float("inf"))
        blocks = likeliest_blocks(blocks, ops.max(blocks, axis=-1))[0]
        logits = ops.reshape(blocks, (-1, _FEW * BLOCK_SIZE))
    return ops.top_k(logits, min(_FEW, logits.shape[1]))[0]
