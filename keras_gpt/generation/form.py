"""`Form`: what the tokens of an answer may be."""

from typing import Protocol, Self

import numpy as np
from keras import ops


class Form(Protocol):
    """What an answer must be, as far as its tokens tell; each row has its own.

    `keras_gpt.language_model.forms` makes them of JSON schemas and the like.

    Attributes:
        allowed: Booleans `(vocab_size,)`: the tokens that may come next. A stop id is
            one where the answer is whole.
        is_whole: Whether the answer is whole as it stands.
        is_over: Whether nothing can follow.
        problem: Why it can't become whole any more, or `None`.
    """

    allowed: np.ndarray
    is_whole: bool
    is_over: bool
    problem: str | None

    def copy(self) -> Self:
        """The form of another answer, which stands where this one does."""

    def advance(self, token_ids: list[int]) -> None:
        """Take the tokens that were added, which are no stop ids."""


def look_up(form, inputs):
    """What follows each token, from a table as of `keras_gpt.export.form_table`.

    Args:
        form: States, int32 `(batch,)`.
        inputs: Its `following` and `kinds`.

    Returns:
        States, int32 `(batch, vocabulary)`, -1 for tokens that may not follow.
    """
    kinds = ops.take(inputs["following"], form, axis=0)
    return ops.take(kinds, inputs["kinds"], axis=1)


def check_whole(row, number: int) -> None:
    """Refuse a row that has ended before it was of its form.

    Args:
        row: A `Row`, whose form may be `None`.
        number: Its place.

    Raises:
        ValueError: It isn't whole.
    """
    if row.form is None or row.form.is_whole:
        return
    why = row.form.problem or (
        f"it ended after {len(row.ids)} tokens. Raise `max_new_tokens`, or bound what "
        "may be long, in a JSON schema by `maxLength`, `maxItems`, `maximum` and "
        "`additionalProperties`: false"
    )
    raise ValueError(f"Answer {number} isn't of its form: {why}.")
