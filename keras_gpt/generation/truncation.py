"""Which tokens may be sampled, told of one that was drawn instead of sorting them all.

A token is among the `top_k` likeliest if fewer are likelier, and in the nucleus of
`top_p` if the likelier ones have less than that probability. Where it isn't, another is
drawn from those that are likelier, which are all that may be: the ones that are kept
come up as often, one beside the other, as if the rest had been left out before.

References:
    - [FlashInfer, 2025](https://flashinfer.ai/2025/03/10/sampling.html), rejection
    - [Holtzman et al., 2020](https://arxiv.org/abs/1904.09751), top-p
    - [Nguyen et al., 2024](https://arxiv.org/abs/2407.01082), min-p
"""

# Axes: b batch, v vocabulary, n block, i place in a block, k the few largest

import numpy as np
from keras import ops

BLOCK_SIZE = 64
_FEW = 64


def in_blocks(x, filling):
    """Cut `(b, v)` into blocks `(b, n, i)`, the last one filled up."""
    missing = -x.shape[1] % BLOCK_SIZE
    if missing:
        x = ops.pad(x, [[0, 0], [0, missing]], constant_values=filling)
    return ops.reshape(x, (-1, x.shape[1] // BLOCK_SIZE, BLOCK_SIZE))


def nucleus_mass(weights, top_k, top_p):
    """What the tokens that are likelier than a kept one weigh less than.

    Args:
        weights: `(batch, vocabulary)`, proportional to probabilities, at most 1.
        top_k: Integers `(batch, 1)`: the nucleus is of the `top_k` likeliest.
        top_p: `(batch, 1)`: the fraction of their weight; 1 for no limit.

    Returns:
        `(batch, 1)`, infinite for no limit.
    """
    is_asked = top_p < 1
    is_few = ops.logical_and(is_asked, top_k < weights.shape[1])
    is_whole = ops.not_equal(is_asked, is_few)
    none = ops.zeros_like(top_p)
    of_all = ops.cond(ops.any(is_whole), lambda: _sum(weights), lambda: none)
    of_few = ops.cond(
        ops.any(is_few),
        lambda: _sum_of_largest(weights, ops.where(is_few, top_k, 0)),
        lambda: none,
    )
    mass = top_p * ops.where(is_few, of_few, of_all)
    return ops.where(is_asked, mass, np.inf)


def is_kept(weights, drawn, top_k, mass):
    """Whether tokens that weigh as much as `drawn` may be sampled, `(batch, 1)`.

    Args:
        weights: `(batch, vocabulary)`.
        drawn: `(batch, 1)`.
        top_k: Integers `(batch, 1)`: fewer must weigh more. What weighs as much as the
            last of them is kept too.
        mass: `(batch, 1)`, of `nucleus_mass`: those must weigh less together.
    """
    is_above = weights > drawn
    none = ops.zeros_like(drawn)
    count = ops.cond(
        ops.any(top_k < weights.shape[1]), lambda: _count(is_above), lambda: none
    )
    above = ops.cond(
        ops.any(mass < np.inf),
        lambda: _sum(ops.where(is_above, weights, 0.0)),
        lambda: none,
    )
    return ops.logical_and(count < ops.cast(top_k, "float32"), above < mass)


def _sum_of_largest(weights, count):
    """The sum of the `count` `(b, 1)` largest of `(b, v)`, `(b, 1)`."""
    ranked = _largest(weights)  # (b, k)
    few = ranked.shape[1]
    known = _sum(ops.where(ops.arange(few, dtype="int32") < count, ranked, 0.0))
    if few == weights.shape[1]:
        return known
    is_more = count > few
    count = ops.cast(count, "float32")

    def is_open(low, high, above):
        middle = ops.sqrt(low * high)
        is_between = ops.logical_and(low < middle, middle < high)
        return ops.logical_and(ops.logical_and(is_more, above < count), is_between)

    def halve(low, high, above):
        middle = ops.sqrt(low * high)
        more = _count(weights > middle)
        is_moved = is_open(low, high, above)
        is_low = ops.logical_and(is_moved, more > count)
        is_high = ops.logical_and(is_moved, more <= count)
        return (
            ops.where(is_low, middle, low),
            ops.where(is_high, middle, high),
            ops.where(is_high, more, above),
        )

    def search():
        start = ops.full_like(known, 1e-30), ops.ones_like(known), ops.zeros_like(known)
        _, edge, above = ops.while_loop(
            lambda *state: ops.any(is_open(*state)), halve, start
        )
        # of those that weigh as much as the last, as many as there is room for
        return _sum(ops.where(weights > edge, weights, 0.0)) + (count - above) * edge

    return ops.where(is_more, ops.cond(ops.any(is_more), search, lambda: known), known)


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


def _sum(x):
    return ops.sum(x, axis=-1, keepdims=True)


def _count(is_true):
    return _sum(ops.cast(is_true, "float32"))
