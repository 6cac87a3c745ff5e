"""What runs on the device: reading prompts, and the loop that adds token by token.

Each program is compiled once for a bucket of shapes.
"""

# Axes: b batch, n new tokens, v vocabulary

import threading
from collections import OrderedDict

import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.generation.form import look_up
from keras_gpt.generation.sampling import (
    adjust,
    choose,
    chosen_log_probs,
    likeliest,
    penalize_repetition,
)

_MOST_PROGRAMS = 16
_finding = threading.Lock()  # programs, of any model

# How often a program was traced, by name: tests count that nothing is traced twice.
trace_counts = {"prefill": 0, "loop": 0, "lookup": 0, "beam": 0, "read": 0}


def compiled(model, program, **static):
    """The compiled `program(model, **static)`, made once for each model.

    A model keeps those that were used last, and none that reads variables which it
    has no more: quantization and LoRA replace some.
    """
    with _finding:
        variables = model.variables
        # not an attribute of the model: Keras would track and wrap the dictionary
        read, programs = model.__dict__.get("_compiled_programs", (None, None))
        if read is None or list(map(id, read)) != list(map(id, variables)):
            programs = OrderedDict()
            model.__dict__["_compiled_programs"] = variables, programs
        key = (program, *static.items())
        if key not in programs:
            function = program(model, **static)
            programs[key] = backend.compile_function(function, variables)
            if len(programs) > _MOST_PROGRAMS:
                programs.popitem(last=False)
        programs.move_to_end(key)
        return programs[key]


def prefill_program(model, cache_length):
    """Make the function that reads the prompts and chooses the first token."""

    def prefill(state, inputs):
        trace_counts["prefill"] += 1
        lengths = inputs["lengths"]
        adapter = inputs.get("adapter")
        token_ids = inputs["token_ids"]
        logits, cache = model.prefill(token_ids, lengths, cache_length, adapter)
        first = ops.zeros_like(lengths)
        state = {**state, "cache": cache, "token": first, "position": lengths - 1}
        return add_token(logits, state, inputs)

    return prefill


class OneByOne:
    """Decoding that adds a token for each pass of the model."""

    room = 0  # of the cache, beyond what the rows' text takes

    def prefill(self, model, cache_length):
        """The compiled `prefill_program`."""
        cache_length += self.room
        return compiled(model, prefill_program, cache_length=cache_length)

    def loop(self, model, cache_length):
        """The compiled loop, see `loop_program`."""
        return compiled(model, loop_program, cache_length=cache_length)

    def inputs(self, token_ids, lengths):
        """What the loop takes besides the controls."""
        del token_ids, lengths
        return {}


def loop_program(model, cache_length):
    """Make the loop that decodes until the rows end, fill up, or `until` is reached."""
    decode = backend.record_step(lambda *arguments: model.decode(*arguments))
    note = backend.record_step(note_token)

    def loop(state, inputs):
        trace_counts["loop"] += 1

        def goes_on(state):
            return has_work(state, inputs["until"], cache_length)

        def step(state):
            position = ops.minimum(state["position"], cache_length - 1)
            logits, cache = decode(state["token"], state["cache"], position)
            state = {name: state[name] for name in state if name != "cache"}
            return ({**add_token(logits, state, inputs, note), "cache": cache},)

        if "allowed" in inputs:  # for one token, and a loop of one is slow
            return step(state)[0]
        return ops.while_loop(goes_on, step, (state,))[0]

    return loop


def has_work(state, until, cache_length):
    """Whether a row is to go on, and all that go on have room in the cache.

    Args:
        state: The loop's.
        until: The step to stop at, `(b,)` or of all rows.
        cache_length: Tokens that the cache has room for.
    """
    has_room = state["position"] < cache_length
    ready = ops.all(ops.logical_or(state["done"], has_room))
    is_below = ops.logical_and(ops.logical_not(state["done"]), state["step"] < until)
    return ops.logical_and(ops.any(is_below), ready)


def note_token(token, logits, following, state, inputs):
    """Note what was chosen for each row, if it goes on.

    Args:
        token: `(b,)`.
        logits: `(b, v)`.
        following: What `look_up` gives, where the state has a form.
        state: The loop's.
        inputs: The loop's.
    """
    step, done = state["step"], state["done"]
    log_probs = chosen_log_probs(logits, token)
    is_stop = ops.any(ops.equal(token[:, None], inputs["stop_ids"]), axis=1)
    goes_on = ops.logical_not(ops.logical_or(done, is_stop))
    noted = ops.logical_and(_is_step(state), goes_on[:, None])
    token = ops.where(done, state["token"], token)
    is_token = ops.equal(
        ops.arange(state["seen"].shape[1], dtype="int32"), token[:, None]
    )
    if "counts" in state:
        counts = state["counts"] + ops.cast(is_token, "float32")
        state = {**state, "counts": counts}
    if "alternatives" in state:
        others = likeliest(logits, state["alternatives"].shape[-1] // 2)[:, None]
        others = ops.where(noted[..., None], others, state["alternatives"])
        state = {**state, "alternatives": others}
    is_last = step + 1 >= inputs["max_new_tokens"]
    if "form" in state:
        form = ops.take_along_axis(following, token[:, None], axis=1)[:, 0]
        form = ops.where(done, state["form"], form)
        is_last = ops.logical_or(is_last, ops.take(inputs["is_over"], form))
        state = {**state, "form": form}
    return {
        **state,
        "token": token,
        "position": ops.where(done, state["position"], state["position"] + 1),
        "seen": ops.logical_or(state["seen"], is_token),
        "done": ops.logical_or(done, ops.logical_or(is_stop, is_last)),
        "tokens": ops.where(noted, token[:, None], state["tokens"]),
        "log_probs": ops.where(noted, log_probs[:, None], state["log_probs"]),
        "step": step + 1,
    }


def add_token(logits, state, inputs, note=note_token):
    """Choose each row's next token and note it where the row goes on.

    Args:
        logits: `(b, v)`.
        state: The loop's.
        inputs: The loop's.
        note: `note_token`, or what the backend made of it.
    """
    uniforms = ops.where(_is_step(state), inputs["uniforms"], 0.0)
    penalty = inputs["repetition_penalty"]
    penalized = ops.cond(
        ops.any(ops.not_equal(penalty, 1.0)),
        lambda: penalize_repetition(logits, state["seen"], penalty),
        lambda: logits,
    )
    if "counts" in state:  # another program, for those who ask for it
        names = ("logit_bias", "presence_penalty", "frequency_penalty")
        adjustments = {name: inputs[name] for name in names}
        penalized = adjust(penalized, state["counts"], **adjustments)
    if "allowed" in inputs:  # another one, for answers of a given form
        penalized = ops.where(inputs["allowed"], penalized, -np.inf)
    following = None
    if "form" in state:  # a table, in exports
        following = look_up(state["form"], inputs)
        penalized = ops.where(following >= 0, penalized, -np.inf)
    token = choose(
        penalized,
        temperature=inputs["temperature"],
        top_k=inputs["top_k"],
        top_p=inputs["top_p"],
        min_p=inputs["min_p"],
        uniforms=ops.sum(uniforms, axis=1),
    )
    return note(token, logits, following, state, inputs)


def _is_step(state):
    """Which place of each row's new tokens is next, `(b, n)`, or `(n,)` of all."""
    index = ops.arange(state["tokens"].shape[1], dtype="int32")
    return ops.equal(index, state["step"][..., None])
