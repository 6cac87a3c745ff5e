"""Which tokens may be sampled, found without sorting the vocabulary.

What a few passes over the weights tell (a largest one, a sum above an edge) is cheap;
the few largest weights are sorted, and seldom does more have to be known.
"""

# Axes: b batch, v vocabulary, n block, i place in a block, k the few largest,
#       r rows that are searched together

from keras import ops

BLOCK_SIZE = 64
_FEW = 64
_ROWS_AT_ONCE = 4


def in_blocks(x, filling):
    """Cut `(b, v)` into blocks `(b, n, i)`, the last one filled up."""
    missing = -x.shape[1] % BLOCK_SIZE
    if missing:
        x = ops.pad(x, [[0, 0], [0, missing]], constant_values=filling)
    return ops.reshape(x, (-1, x.shape[1] // BLOCK_SIZE, BLOCK_SIZE))


def truncation_mask(probabilities, top_k, top_p, min_p):
    """The tokens that sampling may choose; the likeliest always is one.

    Args:
        probabilities: `(batch, vocabulary)`, or what is proportional to them.
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
    largest = ops.max(probabilities, axis=-1, keepdims=True)
    top_k, top_p = top_k[:, None], top_p[:, None]
    is_limited = ops.logical_or(top_k < probabilities.shape[1], top_p < 1)
    least = ops.cond(
        ops.any(is_limited),
        lambda: _least_kept(probabilities, top_k, top_p),
        lambda: ops.zeros_like(largest),
    )
    least = ops.maximum(least, min_p[:, None] * largest)
    return probabilities >= ops.minimum(least, largest)


def _least_kept(weights, top_k, top_p):
    """The least weight `(b, 1)` that the limits keep, 0 where they keep all."""
    size = weights.shape[1]
    ranked = _largest(weights)  # (b, k)
    few = ranked.shape[1]
    in_top_k = ops.where(ops.arange(few, dtype="int32") < top_k, ranked, 0.0)
    known = ops.sum(in_top_k, axis=-1, keepdims=True)
    mass = ops.where(top_k < size, known, ops.sum(weights, axis=-1, keepdims=True))
    least = _last_needed(ranked, in_top_k, 0.0, top_p * mass)
    if few == size:
        return least
    # rows go their own ways, so that none depends on what others ask for
    is_all = ops.logical_and(top_k >= size, top_p >= 1)
    least = ops.where(is_all, 0.0, least)
    is_beyond = ops.logical_or(top_k < size, known < top_p * mass)
    is_beyond = ops.logical_and(is_beyond, top_k > few)
    is_beyond = ops.logical_and(is_beyond, ops.logical_not(is_all))
    # seldom are they many: a few at a time, not all as often as the slowest needs it
    return ops.while_loop(
        lambda least, is_left: ops.any(is_left),
        lambda least, is_left: _search_next(
            weights, ranked, top_k, top_p, least, is_left
        ),
        (least, is_beyond),
    )[0]


def _search_next(weights, ranked, top_k, top_p, least, is_left):
    """Find the `least` weights of the first rows that are left, both `(b, 1)`."""
    rows = min(weights.shape[0] or _ROWS_AT_ONCE, _ROWS_AT_ONCE)
    number = ops.cumsum(ops.cast(is_left, "int32"), axis=0)  # (b, 1)
    is_row = ops.equal(number, ops.arange(1, rows + 1, dtype="int32"))
    is_row = ops.logical_and(is_left, is_row)  # (b, r)
    row = ops.argmax(ops.cast(is_row, "int32"), axis=0)  # the batch's first for none
    row = ops.where(ops.any(is_row, axis=0), row, row[:1])
    found = _search(
        *(ops.take(x, row, axis=0) for x in (weights, ranked, top_k, top_p))
    )
    found = ops.sum(ops.where(is_row, ops.transpose(found), 0.0), axis=1, keepdims=True)
    is_found = ops.any(is_row, axis=1, keepdims=True)
    least = ops.where(is_found, found, least)
    return least, ops.logical_and(is_left, ops.logical_not(is_found))


def _search(weights, ranked, top_k, top_p):
    """The least weight kept, `(r, 1)`, of rows that keep more than is ranked."""
    none = ops.zeros_like(top_p)
    target = ops.cast(top_k, "float32")
    by_count = top_k < weights.shape[1]
    of_top_k = ops.cond(
        ops.any(by_count),
        lambda: _bisect(weights, ranked, target, none, by_count, True),
        lambda: none,
    )
    of_top_k = ops.where(by_count, of_top_k, 0.0)
    is_above = ops.cast(weights > of_top_k, "float32")
    # of those that are as likely as the last, as many as there is room for
    ties = target - ops.sum(is_above, axis=-1, keepdims=True)
    mass = ops.sum(is_above * weights, axis=-1, keepdims=True) + ties * of_top_k
    # what is below this edge has, all together, less than may be left out
    lowest = (1 - top_p) * mass / weights.shape[1]
    by_mass = top_p < 1
    of_top_p = ops.cond(
        ops.any(by_mass),
        lambda: _bisect(weights, ranked, top_p * mass, lowest, by_mass, False),
        lambda: none,
    )
    return ops.maximum(of_top_k, ops.where(by_mass, of_top_p, 0.0))


def _bisect(weights, ranked, target, low, is_asked, is_count):
    """The largest weight such that it and those above reach a target.

    Args:
        weights: `(r, v)`.
        ranked: The largest of them.
        target: `(r, 1)`.
        low: A weight below the one that is searched, `(r, 1)`.
        is_asked: Rows to search in; the others give any weight.
        is_count: Whether the target is of a count, or of a sum of weights.
    """

    def measure(x):
        return ops.cast(x > 0, "float32") if is_count else x

    def above(x, edge):
        return ops.sum(measure(ops.where(x > edge, x, 0.0)), axis=-1, keepdims=True)

    def is_open(low, high, reached):
        # each that is still needed counts at least so much: are they more than few?
        each = 1.0 if is_count else low
        is_far = target - reached > (ranked.shape[1] - 1) * each
        middle = ops.sqrt(low * high)
        is_between = ops.logical_and(low < middle, middle < high)
        return ops.logical_and(ops.logical_and(is_asked, is_far), is_between)

    def step(low, high, reached):
        is_moved = is_open(low, high, reached)
        middle = ops.sqrt(low * high)
        more = above(weights, middle)
        is_enough = more >= target
        is_lower = ops.logical_and(is_moved, ops.logical_not(is_enough))
        is_moved = ops.logical_and(is_moved, is_enough)
        return (
            ops.where(is_moved, middle, low),
            ops.where(is_lower, middle, high),
            ops.where(is_lower, more, reached),
        )

    high = ops.min(ranked, axis=-1, keepdims=True)
    largest = ops.max(ranked, axis=-1, keepdims=True)
    start = ops.maximum(low, 1e-30 * largest), high, above(weights, high)
    _, high, reached = ops.while_loop(
        lambda *state: ops.any(is_open(*state)), step, start
    )
    below = _largest(ops.where(weights <= high, weights, 0.0))
    searched = _last_needed(below, measure(below), reached, target)
    counted = measure(ranked)
    is_ranked = ops.sum(counted, axis=-1, keepdims=True) >= target
    return ops.where(is_ranked, _last_needed(ranked, counted, 0.0, target), searched)


def _last_needed(ranked, measures, reached, target):
    """The last of descending weights before which a target isn't reached, `(b, 1)`."""
    before = reached + ops.cumsum(measures, axis=-1) - measures
    is_needed = ops.logical_and(measures > 0, before < target)
    largest = ops.max(ranked, axis=-1, keepdims=True)
    needed = ops.where(is_needed, ranked, largest)
    return ops.min(needed, axis=-1, keepdims=True)


def _largest(weights):
    """The few largest of `(b, v)`, descending, `(b, k)`.

    Don't slice the result: XLA would take the slice of a sort of them all.
    """
    if weights.shape[1] > _FEW * BLOCK_SIZE:
        # they are in the blocks with the largest maxima
        blocks = in_blocks(weights, 0.0)
        chosen = ops.top_k(ops.max(blocks, axis=-1), _FEW)[1]
        chosen = ops.cast(chosen, "int32")[:, :, None]
        blocks = ops.take_along_axis(blocks, chosen, axis=1)
        weights = ops.reshape(blocks, (-1, _FEW * BLOCK_SIZE))
    return ops.top_k(weights, min(_FEW, weights.shape[1]))[0]
