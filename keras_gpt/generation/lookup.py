"""Prompt-lookup speculation: what follows is often what followed before.

At each step a draft is copied from where the last tokens of a row occurred before, and
one pass of the model reads all of it. Tokens are chosen as ever, one after the other,
for as long as each is the one that was read in its place.

References:
    - [Saxena, 2023](https://github.com/apoorvumang/prompt-lookup-decoding)
    - [Leviathan et al., 2023](https://arxiv.org/abs/2211.17192), speculative decoding
"""

# Axes: b batch, t token of a pass, s position, v vocabulary

from keras import ops

from keras_gpt import backend
from keras_gpt.generation.programs import (
    OneByOne,
    add_token,
    compiled,
    has_work,
    note_token,
    trace_counts,
)

_LONGEST_MATCH = 3


class PromptLookup(OneByOne):
    """Decoding that reads drafts, and keeps of them what it would have chosen.

    Args:
        lookup_tokens: Length of a draft.
    """

    def __init__(self, lookup_tokens):
        self.room = lookup_tokens  # of the cache, so that the last draft has a place

    def loop(self, model, cache_length):
        """The compiled loop, see `lookup_program`."""
        return compiled(
            model, lookup_program, cache_length=cache_length, lookup_tokens=self.room
        )

    def inputs(self, token_ids, lengths):
        """What the loop takes besides the controls: the text that was read."""
        return {"token_ids": token_ids, "lengths": lengths}


def lookup_program(model, cache_length, lookup_tokens):
    """Make the loop that decodes until the rows end, fill up, or reach `until`.

    It is that of `loop_program`, but that rows add several tokens in a pass, so that
    each is at a step of its own, and that the passes are counted.
    """
    decode = backend.record_step(lambda *arguments: model.decode(*arguments))
    note = backend.record_step(note_token)

    def loop(state, inputs):
        trace_counts["lookup"] += 1

        def goes_on(state):
            return has_work(state, inputs["until"], cache_length)

        def step(state):
            position = ops.minimum(state["position"], cache_length - 1)
            draft = find_draft(state["text"], position, lookup_tokens)
            read = ops.concatenate([state["token"][:, None], draft], axis=1)  # (b, t)
            cache = dict(state["cache"])
            if "document_start" in cache:
                cache["document_start"] = model.documents.find_start(
                    state["text"], state["position"]
                )
            logits, cache = decode(read, cache, position)
            state = {name: state[name] for name in state if name != "cache"}
            state = _choose_while_right(logits, read, state, inputs, note)
            return ({**state, "cache": cache, "passes": state["passes"] + 1},)

        state = {**state, "text": _write_text(state, inputs, cache_length)}
        state = ops.while_loop(goes_on, step, (state,))[0]
        return {name: state[name] for name in state if name != "text"}

    return loop


def _write_text(state, inputs, cache_length):
    """The token in each place of the cache, `(b, s)`: those read, then the new ones."""
    read, lengths = inputs["token_ids"], inputs["lengths"][:, None]
    read = ops.pad(read, [[0, 0], [0, cache_length - read.shape[1]]])
    index = ops.arange(cache_length, dtype="int32")  # (s,)
    place = ops.clip(index - lengths, 0, state["tokens"].shape[1] - 1)
    new = ops.take_along_axis(state["tokens"], place, axis=1)
    return ops.where(index < lengths, read, new)


def find_draft(text, position, num_tokens):
    """Guess the tokens after `position` from what followed the last ones before.

    Of the places where up to three of them occurred, the longest match counts, and of
    equal ones the last. Where the text from there to its end is shorter than the draft,
    it is repeated.

    Args:
        text: Token ids `(batch, sequence)`.
        position: Integers `(batch,)`, the place of each row's last token; what is
            behind it is ignored.
        num_tokens: Length of the draft.

    Returns:
        Token ids `(batch, num_tokens)`: any where nothing matches.
    """
    size = text.shape[1]
    s = ops.arange(size, dtype="int32")
    matches = s < position[:, None]  # (b, s)
    score = s
    for n in range(_LONGEST_MATCH):
        place = ops.maximum(position - n, 0)[:, None]
        token = ops.take_along_axis(text, place, axis=1)  # (b, 1)
        shifted = ops.pad(text[:, : size - n], [[0, 0], [n, 0]], constant_values=-1)
        matches = ops.logical_and(matches, ops.equal(shifted, token))
        score = score + size * ops.cast(matches, "int32")
    best = ops.cast(ops.argmax(score, axis=1), "int32")  # (b,)
    best = ops.maximum(ops.minimum(best, position - 1), 0)[:, None]
    period = ops.maximum(position[:, None] - best, 1)
    places = best + 1 + ops.arange(num_tokens, dtype="int32") % period
    return ops.take_along_axis(text, places, axis=1)


def _choose_while_right(logits, read, state, inputs, note):
    """Choose each row's tokens, until one isn't the one that was read after it.

    Args:
        logits: After each token of `read`, `(b, t, v)`.
        read: Token ids `(b, t)`, the last chosen one and the draft.
        state: But for the cache.
        inputs: As of the loop.
        note: As of `add_token`.
    """
    following = ops.pad(read[:, 1:], [[0, 0], [0, 1]], constant_values=-1)  # (b, t)

    def goes_on(t, right, state):
        del t, state
        return ops.any(right)

    def choose_one(t, right, state):
        # rows that were wrong wait as if they were done
        added = add_token(
            ops.take(logits, t, axis=1),
            {**state, "done": ops.logical_not(right)},
            inputs,
            note,
        )
        added["step"] = ops.where(right, added["step"], state["step"])
        has_ended = ops.logical_and(right, added["done"])
        added["done"] = ops.logical_or(state["done"], has_ended)
        is_read = ops.equal(added["token"], ops.take(following, t, axis=1))
        has_room = added["position"] < state["text"].shape[1]
        right = ops.logical_and(right, ops.logical_and(is_read, has_room))
        right = ops.logical_and(right, ops.logical_not(added["done"]))
        return t + 1, right, _write_last(added)

    first = (ops.zeros((), "int32"), ops.logical_not(state["done"]), state)
    return ops.while_loop(goes_on, choose_one, first)[2]


def _write_last(state):
    """Write each row's last token into its text."""
    index = ops.arange(state["text"].shape[1], dtype="int32")
    is_place = ops.equal(index, state["position"][:, None])
    return {
        **state,
        "text": ops.where(is_place, state["token"][:, None], state["text"]),
    }
