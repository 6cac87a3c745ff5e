import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from keras_gpt.data.packing import plan_packing

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 16))
def test_rows_hold_every_token_once_but_for_separators_left_alone(lengths, size):
    ends = np.cumsum(lengths)
    plan = plan_packing(ends, size)
    held = np.zeros(ends[-1], int)
    for start, length in zip(plan.starts, plan.lengths, strict=True):
        assert np.searchsorted(ends, start, "right") == np.searchsorted(
            ends, start + length - 1, "right"
        )
        held[start : start + length] += 1
    assert held.max(initial=0) <= 1
    missing = set(np.flatnonzero(held == 0).tolist())
    assert missing <= set((ends - 1).tolist())


@given(LENGTHS, st.integers(1, 16))
def test_no_row_is_empty_or_overfull_and_only_long_documents_are_cut(lengths, size):
    ends = np.cumsum(lengths)
    plan = plan_packing(ends, size)
    starts = set((ends - lengths).tolist())
    for row in range(plan.num_rows):
        parts = slice(plan.row_splits[row], plan.row_splits[row + 1])
        assert 0 < plan.lengths[parts].sum() <= size
        for start, length in zip(plan.starts[parts], plan.lengths[parts], strict=True):
            document = np.searchsorted(ends, start, "right")
            is_whole = start in starts and start + length == ends[document]
            assert is_whole or lengths[document] > size


def test_a_separator_alone_is_left_out():
    # after a row that its document fills, and of an empty document
    plan = plan_packing(np.array([8, 9, 12]), 7)
    assert plan.starts.tolist() == [0, 9]
    assert plan.lengths.tolist() == [7, 3]
    assert plan.row_splits.tolist() == [0, 1, 2]


def test_packing_wastes_little():
    lengths = np.random.default_rng(0).integers(2, 200, size=2000)
    plan = plan_packing(np.cumsum(lengths), 256)
    assert plan.num_rows <= 1.02 * lengths.sum() / 256


@given(LENGTHS, st.integers(2, 16))
def test_each_rest_goes_into_the_row_that_it_fills_best(lengths, size):
    lengths = [length for length in lengths if 1 < length <= size] or [size]
    spaces = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length] or [size]
        if min(fitting) in spaces:
            spaces.remove(min(fitting))
        spaces.append(min(fitting) - length)
    plan = plan_packing(np.cumsum(lengths), size)
    filled = np.add.reduceat(plan.lengths, plan.row_splits[:-1])
    assert sorted(size - filled) == sorted(spaces)
