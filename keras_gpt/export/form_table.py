"""A form that answers shall have, as a table for the decode loop."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_gpt.generation.rows import check_stop_ids
from keras_gpt.installed import require
from keras_gpt.language_model.forms import choices_to_regex, take_form

_END = "\U0010ffff"  # behind an answer: a noncharacter, which text doesn't hold
_MOST_STATES = 4096
_MOST_ENTRIES = 2**22  # int32: 16 MB in the graph


@dataclass(frozen=True)
class FormTable:
    """What may follow each beginning of an answer.

    Attributes:
        about: What the answers are, in words.
        following: int32 `(states, kinds)`: the state behind a token of a kind, -1 where
            it may not follow. State 0 is that of an empty answer.
        kinds: int32 `(vocab_size,)`: tokens that lead alike are of one kind.
        is_over: Booleans `(states,)`: whether nothing can follow.
    """

    about: str
    following: np.ndarray
    kinds: np.ndarray
    is_over: np.ndarray


def make_table(
    lm,
    stop_ids: Sequence[int],
    regex: str | None = None,
    choices: Sequence[str] | None = None,
) -> FormTable | None:
    """Make the table of a form, state by state.

    Args:
        lm: A `LanguageModel`.
        stop_ids: Ids that end an answer that is whole.
        regex: As of `LanguageModel.generate`.
        choices: As of `LanguageModel.generate`.

    Returns:
        The table, or `None` where neither is given.

    Raises:
        ImportError: A package isn't installed.
        ValueError: The form isn't supported, or its table is too large.
    """
    asked = {"regex": regex, "choices": choices, "stop_ids": stop_ids}
    form = take_form(lm, (), asked)
    if form is None:
        return None
    name, about = "regex", f"texts that match `{regex}`"
    if choices is not None:
        name, about, regex = "choices", f"one of {choices}", choices_to_regex(choices)
    require("grammar", f"`{name}` of an export", "outlines_core")
    vocab_size = lm.model.config.vocab_size
    stops = [i for i in check_stop_ids(stop_ids, vocab_size) if i >= 0]
    end = lm.tokenizer.vocab_size
    index = _make_index(lm.tokenizer, regex, name)
    states, forms = {index.get_initial_state(): 0}, [form]
    steps = []  # tokens and the states behind them, of each state
    for state in (order := [*states]):
        form = forms[len(steps)]
        allowed = form.allowed.copy()
        allowed[stops] = False
        tokens = np.flatnonzero(allowed)
        behind = [index.get_next_state(state, token) for token in tokens.tolist()]
        ended = index.get_next_state(state, end)
        is_whole = ended is not None and index.is_final_state(ended)
        # two libraries must have the same tokens: that of `generate` is the other
        if None in behind or form.is_whole != is_whole:
            raise ValueError(
                f"`{name}` can't be a table: {regex!r}. Write it without anchors."
            )
        for token, other in zip(tokens.tolist(), behind, strict=True):
            if other not in states:
                states[other] = len(order)
                order.append(other)
                forms.append(form.copy())
                forms[-1].advance([token])
        _check_size(name, len(states), _MOST_STATES, "states")
        numbers = [states[other] for other in behind]
        if form.is_whole:
            tokens = np.append(tokens, stops).astype(int)
            numbers += [len(steps)] * len(stops)
        steps.append((tokens, numbers))
    is_over = np.array([form.is_over for form in forms])
    following, kinds = _join_alike(steps, vocab_size)
    _check_size(name, following.size, _MOST_ENTRIES, "entries")
    return FormTable(about, following, kinds, is_over)


def _make_index(tokenizer, regex, name):
    """What tells which beginnings of answers are alike.

    An answer is to end with a character of its own, as the library (0.2.14) lets one
    that is whole go on only to where it is whole again, and takes of two alternatives
    the first.
    """
    from outlines_core import Index, Vocabulary

    ids = {_END.encode(): [tokenizer.vocab_size]}
    for token_id in set(range(tokenizer.vocab_size)) - set(
        tokenizer.special_tokens.values()
    ):
        token = tokenizer.decode_bytes([token_id])
        if token:
            ids.setdefault(token, []).append(token_id)
    try:
        return Index(f"(?:{regex}){_END}", Vocabulary(tokenizer.vocab_size + 1, ids))
    except ValueError as error:
        raise ValueError(f"`{name}` can't be a table: {error}.") from error


def _join_alike(steps, vocab_size):
    """The table `(states, kinds)` and the kind of each token."""
    kinds = np.zeros(vocab_size, int)
    rows = []
    for tokens, numbers in steps:
        row = np.full(vocab_size, -1)
        row[tokens] = numbers
        rows.append(row.astype("int16"))
        # those that were alike before, and are here
        pairs = kinds * (len(steps) + 1) + row + 1
        _, first, kinds = np.unique(pairs, return_index=True, return_inverse=True)
    following = np.stack([row[first] for row in rows]).astype("int32")
    return following, kinds.astype("int32")


def _check_size(name, size, most, what):
    if size > most:
        raise ValueError(
            f"The table of `{name}` is too large. Received: more than {most} {what}. "
            "Bound what may be repeated, or ask `LanguageModel.generate`."
        )
