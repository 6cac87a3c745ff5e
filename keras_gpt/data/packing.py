"""Pack whole documents into rows of equal length."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class PackingPlan(NamedTuple):
    """Which parts of the token files make up each row.

    Attributes:
        starts: Where each part starts in the tokens of the split.
        lengths: How many tokens it has.
        row_splits: Row `r` consists of the parts `row_splits[r]` up to
            `row_splits[r + 1]`.
    """

    starts: np.ndarray
    lengths: np.ndarray
    row_splits: np.ndarray

    @property
    def num_rows(self) -> int:
        """How many rows hold all documents once."""
        return len(self.row_splits) - 1


def plan_packing(document_ends: np.ndarray, sequence_length: int) -> PackingPlan:
    """Assign documents to rows; those longer than a row are cut.

    The parts that fill a row are rows of their own. The rest goes, longest first,
    into the row that it fills best (best-fit decreasing), as in "Fewer Truncations
    Improve Language Modeling" (https://arxiv.org/abs/2404.10830).

    Args:
        document_ends: Where each document ends, its separator included.
        sequence_length: Tokens in a row.

    Returns:
        The plan.

    Example:

    >>> plan = plan_packing(np.array([3, 9, 13]), sequence_length=7)
    >>> plan.row_splits.tolist(), plan.starts.tolist(), plan.lengths.tolist()
    ([0, 1, 3], [3, 0, 9], [6, 3, 4])
    """
    starts = np.concatenate([[0], document_ends[:-1]]).astype(np.int64)
    lengths = document_ends - starts
    # A last part of one token is a separator alone: nothing follows it to predict.
    num_full = np.maximum(lengths - 1, 0) // sequence_length
    rest = lengths - num_full * sequence_length
    full_starts = np.repeat(starts, num_full) + sequence_length * _count_up(num_full)
    is_kept = rest > 1
    rest_starts = (starts + num_full * sequence_length)[is_kept]
    rest = rest[is_kept]
    rest_rows = len(full_starts) + _best_fit(rest, sequence_length)
    rows = np.concatenate([np.arange(len(full_starts)), rest_rows])
    order = np.argsort(rows, kind="stable")
    all_starts = np.concatenate([full_starts, rest_starts])[order]
    all_lengths = np.concatenate([np.full_like(full_starts, sequence_length), rest])
    num_parts = np.bincount(rows)
    return PackingPlan(
        all_starts, all_lengths[order], np.concatenate([[0], np.cumsum(num_parts)])
    )


class RowPart(NamedTuple):
    """A stretch of a row: ids, the targets one ahead, and the weights of these."""

    token_ids: Sequence[int]
    targets: Sequence[int]
    weights: Sequence[float]


def fill_rows(
    rows: Sequence[Iterable[RowPart]],
    sequence_length: int,
    padding_id: int,
    gap: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put the parts of each row one after another.

    Args:
        rows: The parts of each.
        sequence_length: Tokens in a row.
        padding_id: What stands where there is no part, with weight 0.
        gap: How many places stay free between parts. Defaults to 0.

    Returns:
        Ids and targets, int32, and weights, float32, `(rows, sequence_length)`.
    """
    shape = (len(rows), sequence_length)
    token_ids = np.full(shape, padding_id, np.int32)
    targets = np.full(shape, padding_id, np.int32)
    weights = np.zeros(shape, np.float32)
    for index, parts in enumerate(rows):
        place = 0
        for part in parts:
            end = place + len(part.token_ids)
            token_ids[index, place:end] = part.token_ids
            targets[index, place : place + len(part.targets)] = part.targets
            weights[index, place:end] = part.weights
            place = end + gap
    return token_ids, targets, weights


def _count_up(counts: np.ndarray) -> np.ndarray:
    """Join `range(count)` for each count."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Give each length a row so that no row exceeds the capacity.

    Equal lengths are placed together: each fills the rows that it fits best, one row
    after the other, before the next best are begun.
    """
    rows = np.empty(len(lengths), np.int64)
    rows_by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0  # Bit `s` is set when some row has exactly `s` free.
    num_rows = 0
    order = np.argsort(-lengths, kind="stable")
    values, counts = np.unique(lengths, return_counts=True)
    done = 0
    for length, left in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            fitting = spaces >> length
            if fitting:
                # The lowest bit that is set: the smallest space that is large enough.
                space = length + (fitting & -fitting).bit_length() - 1
                found = rows_by_space[space]
            else:
                space = capacity
                found = range(num_rows, num_rows + left)
            each = space // length
            num_used = min(len(found), -(-left // each))
            if fitting:  # the latest first
                used = found[: -num_used - 1 : -1]
                del found[-num_used:]
                if not found:
                    spaces ^= 1 << space
            else:
                used = found[:num_used]
                num_rows += num_used
            placed = min(left, each * num_used)
            rows[order[done : done + placed]] = np.repeat(used, each)[:placed]
            done, left = done + placed, left - placed
            last = each - (each * num_used - placed)  # how many are in the last row
            for taken, some in ((each, used[:-1]), (last, used[-1:])):
                if some and space > taken * length:
                    rows_by_space[space - taken * length].extend(some)
                    spaces |= 1 << (space - taken * length)
    return rows
