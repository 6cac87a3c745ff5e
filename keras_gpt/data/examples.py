"""Examples of a task: batches that teach the answers alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_gpt.data.batches import Rows, check_at_least, choose_seed, load_rows
from keras_gpt.data.packing import RowPart, fill_rows, plan_packing

if TYPE_CHECKING:
    import grain


@dataclass(frozen=True)
class Example:
    """A text to learn from.

    Attributes:
        token_ids: All of it: a prompt and its answer, or a conversation.
        is_answer: For each id whether it is learned.
    """

    token_ids: list[int]
    is_answer: list[bool]

    @property
    def num_answer_tokens(self) -> int:
        """How many ids count in the loss; the first can't, nothing precedes it."""
        return sum(self.is_answer[1:])


def load_examples(
    examples: Sequence[Example],
    batch_size: int,
    sequence_length: int,
    seed: int = 0,
    *,
    separator_id: int | None = None,
    order: str = "random",
    start_step: int = 0,
    **options: Any,
) -> "grain.IterDataset":
    """Load batches of examples as a grain dataset that `fit` takes as it is.

    Args:
        examples: At most `sequence_length + 1` ids each, or `sequence_length` with a
            separator.
        batch_size: Rows in a batch.
        sequence_length: Tokens in a row.
        seed: Chooses the random order.
        separator_id: Packs as many examples into a row as there is room for, with
            this id behind each; a GPT whose `document_separator_id` it is keeps them
            from seeing each other. Defaults to `None`: a row for each, padded on the
            right.
        order: `"random"`, which each epoch of `GPT.fit` has anew, or `"sequential"`,
            whose last batch may be smaller.
        start_step: The step to start at, as if the steps before had been taken.
        **options: `pad_remainder`, `process_index` and `process_count`, as of
            `load_batches`.

    Returns:
        A `grain.IterDataset` of one pass, with `len`, and `repeat()` for one without
        end. Its items are `(token_ids, targets, sample_weight)`, `(batch_size,
        sequence_length)`: int32, int32 and float32, the targets one token ahead and
        the weights 1 where they are an answer's.

    Raises:
        ValueError: There is no example, one is too long or has a separator inside,
            or the order is unknown.

    Example:

    >>> from keras_gpt.data import Example, load_examples
    >>> example = Example([5, 6, 7, 8, 1], [False, False, True, True, True])
    >>> batches = load_examples([example], 1, 6, order="sequential")
    >>> [ids, targets, weights] = next(iter(batches))
    >>> targets[0].tolist(), weights[0].tolist()
    ([6, 7, 8, 1, 0, 0], [0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    """
    seed = choose_seed(order, seed)
    rows = _ExampleRows(examples, sequence_length, separator_id, seed)
    return load_rows(rows, batch_size, start_step, **options)


def count_rows(
    examples: Sequence[Example], sequence_length: int, separator_id: int | None
) -> int:
    """How many rows `load_examples` makes of the examples."""
    return _ExampleRows(examples, sequence_length, separator_id, None).num_rows


class _ExampleRows(Rows):
    """Rows of one or of several examples."""

    def __init__(self, examples, sequence_length, separator_id, seed):
        check_at_least(1, sequence_length=sequence_length)
        if not examples:
            raise ValueError("There are no examples to learn from.")
        self._examples = examples
        self._length = sequence_length
        self._separator_id = separator_id
        lengths = np.array([len(example.token_ids) for example in examples])
        least = lengths.max() - (separator_id is None)
        if sequence_length < least:
            raise ValueError(
                f"`sequence_length` must be at least {least} for the longest example. "
                f"Received: sequence_length={sequence_length}."
            )
        if separator_id is None:
            self._rows = [[index] for index in range(len(examples))]
        else:
            self._rows = _pack(lengths, sequence_length)
            for index, example in enumerate(examples):
                if separator_id in example.token_ids[:-1]:
                    raise ValueError(
                        f"Example {index} holds the id {separator_id}, which separates "
                        "packed examples. Don't pack: packing=false."
                    )
        super().__init__(len(self._rows), seed)

    def gather(self, rows):
        parts = [self._parts(row) for row in rows]
        # the last id predicts nothing: a separator may stand in its place
        return fill_rows(parts, self._length, self._separator_id or 0, gap=1)

    def _parts(self, row):
        for index in self._rows[row]:
            example = self._examples[index]
            ids = example.token_ids
            yield RowPart(ids[:-1], ids[1:], example.is_answer[1:])


def _pack(lengths, sequence_length):
    """Which examples share each row."""
    ends = np.cumsum(lengths)
    plan = plan_packing(ends, sequence_length)
    # no example is longer than a row, so each part is a whole one
    indices = np.searchsorted(ends - lengths, plan.starts)
    return [part.tolist() for part in np.split(indices, plan.row_splits[1:-1])]
