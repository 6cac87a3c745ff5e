"""Beam search."""

# Axes: b batch, k beam, n new tokens, v vocabulary

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.generation.controls import Controls, pad_prompts
from keras_gpt.generation.generate import compiled, trace_counts
from keras_gpt.generation.sampling import penalize_repetition

_NEVER = -1e30


def beam_search(
    model,
    ids: Sequence[Sequence[int]],
    *,
    num_beams: int,
    max_new_tokens: int | Sequence[int] = 64,
    length_penalty: float = 1.0,
    repetition_penalty: float | Sequence[float] = 1.0,
    stop_ids: Sequence[int] = (),
    num_return_sequences: int = 1,
) -> list[list[int]]:
    """Continue each prompt with the likeliest text that a beam search finds.

    At every step the `num_beams` likeliest continuations of all beams stay; a beam
    that met a stop id stays as it is while it is among them.

    Args:
        model: A `GPT`.
        ids: Prompts, each a non-empty list of token ids.
        num_beams: Number of beams; 1 is greedy.
        max_new_tokens: Most tokens to add.
        length_penalty: At the end, each beam's log-probability is divided by its
            length to this power; above 0 favours longer text. Defaults to 1.
        repetition_penalty: As in `keras_gpt.generate`.
        stop_ids: Ids that end a beam. They are not part of the result.
        num_return_sequences: How many of the best beams to return for each prompt.

    Returns:
        The new ids of each row, without the prompt.

    Raises:
        ValueError: As `keras_gpt.generate`; and where prompt and new tokens don't fit
            the model's context.
    """
    if not isinstance(num_beams, int) or num_beams < 1:
        raise ValueError(
            "`num_beams` must be a positive integer. Received: "
            f"num_beams={num_beams!r}."
        )
    if not math.isfinite(length_penalty):
        raise ValueError(
            "`length_penalty` must be a finite number. Received: "
            f"length_penalty={length_penalty!r}."
        )
    if not 1 <= num_return_sequences <= num_beams:
        raise ValueError(
            "`num_return_sequences` must be from 1 to `num_beams`. Received: "
            f"num_return_sequences={num_return_sequences}, num_beams={num_beams}."
        )
    config = model.config
    controls = Controls.check(
        config,
        ids,
        max_new_tokens=max_new_tokens,
        repetition_penalty=repetition_penalty,
        stop_ids=stop_ids,
    )
    prompts = controls.prompts
    most_new = int(controls.max_new_tokens.max(initial=0))
    if most_new == 0:
        return [[] for _ in range(len(prompts) * num_return_sequences)]
    longest = max(map(len, prompts)) + most_new
    if longest > config.context_length + 1:
        raise ValueError(
            "Beam search needs room for prompt and new tokens in the model's context. "
            f"Received: {longest} tokens, context_length={config.context_length}. "
            "Lower max_new_tokens or shorten the prompt."
        )
    num_new = backend.bucket(max(most_new, 16))
    token_ids, lengths = pad_prompts(prompts, config)
    program = compiled(
        model,
        beam_program,
        num_beams=num_beams,
        num_new=num_new,
        cache_length=min(backend.bucket(max(longest, 16)), config.context_length),
    )
    inputs = controls.tensors(len(token_ids))
    inputs["token_ids"] = ops.convert_to_tensor(token_ids)
    inputs["lengths"] = ops.convert_to_tensor(lengths)
    seen = controls.seen(len(token_ids), config.vocab_size)
    inputs["seen"] = ops.convert_to_tensor(seen)
    result = program({}, inputs)
    tokens = ops.convert_to_numpy(result["tokens"])  # (b, k, n)
    scores = ops.convert_to_numpy(result["scores"])  # (b, k)
    counts = np.maximum(ops.convert_to_numpy(result["counts"]), 1)
    ranking = np.argsort(-scores / counts**length_penalty, axis=1, kind="stable")
    return [
        [int(token) for token in tokens[row, beam] if token >= 0]
        for row in range(len(prompts))
        for beam in ranking[row, :num_return_sequences]
    ]


def beam_program(model, num_beams, num_new, cache_length):
    """Make the function that searches from the prompts to the end."""

    def search(state, inputs):  # `state` is empty: nothing is given to be reused
        trace_counts["beam"] += 1
        lengths = inputs["lengths"]
        b, k = lengths.shape[0], num_beams
        logits, cache = model.prefill(inputs["token_ids"], lengths, cache_length)
        spread = ops.convert_to_tensor(np.repeat(np.arange(b), k).astype("int32"))
        first_beam = np.full((b, k), _NEVER, "float32")
        first_beam[:, 0] = 0.0  # the beams start alike: let one of them speak
        state = {
            "cache": _take_rows(cache, spread),
            "position": ops.take(lengths, spread, axis=0) - 1,
            "seen": ops.take(inputs["seen"], spread, axis=0),
            "token": ops.zeros((b * k,), "int32"),
            "scores": ops.convert_to_tensor(first_beam),
            "done": ops.repeat(inputs["max_new_tokens"][:, None] < 1, k, axis=1),
            "counts": ops.zeros((b, k), "int32"),
            "tokens": ops.full((b, k, num_new), -1, "int32"),
            "step": ops.zeros((), "int32"),
        }
        state = _extend(ops.take(logits, spread, axis=0), state, inputs)

        def goes_on(state):
            return ops.logical_not(ops.all(state["done"]))

        def step(state):
            position = ops.minimum(state["position"], cache_length - 1)
            logits, cache = model.decode(state["token"], state["cache"], position)
            return (_extend(logits, {**state, "cache": cache}, inputs),)

        result = ops.while_loop(goes_on, step, (state,))[0]
        return {name: result[name] for name in ("tokens", "scores", "counts")}

    return search


def _extend(logits, state, inputs):
    """Keep the likeliest one-token extensions of each row's beams."""
    b, k = state["scores"].shape
    v = logits.shape[-1]
    penalty = ops.repeat(inputs["repetition_penalty"], k, axis=0)
    logits = penalize_repetition(logits, state["seen"], penalty)
    log_probs = ops.reshape(ops.log_softmax(logits, axis=-1), (b, k, v))
    # a beam that is done has one extension, itself
    itself = ops.where(ops.equal(ops.arange(v, dtype="int32"), 0), 0.0, _NEVER)
    log_probs = ops.where(state["done"][:, :, None], itself, log_probs)
    totals = ops.reshape(state["scores"][:, :, None] + log_probs, (b, k * v))
    scores, best = ops.top_k(totals, k)  # (b, k)
    best = ops.cast(best, "int32")
    parent, token = best // v, best % v
    first_row = ops.convert_to_tensor((np.arange(b) * k).astype("int32"))
    rows = ops.reshape(parent + first_row[:, None], (b * k,))

    def of_parent(x):
        """Reorder `(b, k, ...)` by parent."""
        flat = ops.reshape(x, (b * k, *x.shape[2:]))
        return ops.reshape(ops.take(flat, rows, axis=0), x.shape)

    was_done = of_parent(state["done"])
    is_stop = ops.any(ops.equal(token[:, :, None], inputs["stop_ids"]), axis=-1)
    is_last = (state["step"] + 1 >= inputs["max_new_tokens"])[:, None]
    tokens = of_parent(state["tokens"])
    at_step = ops.equal(ops.arange(tokens.shape[2], dtype="int32"), state["step"])
    skipped = ops.logical_or(was_done, is_stop)[:, :, None]
    noted = ops.logical_and(at_step, ops.logical_not(skipped))
    flat_token = ops.reshape(token, (b * k,))
    is_token = ops.equal(ops.arange(v, dtype="int32"), flat_token[:, None])
    return {
        "cache": _take_rows(state["cache"], rows),
        "position": ops.take(state["position"], rows, axis=0) + 1,
        "seen": ops.logical_or(ops.take(state["seen"], rows, axis=0), is_token),
        "token": flat_token,
        "scores": scores,
        "done": ops.logical_or(was_done, ops.logical_or(is_stop, is_last)),
        "counts": of_parent(state["counts"])
        + ops.cast(ops.logical_not(was_done), "int32"),
        "tokens": ops.where(noted, token[:, :, None], tokens),
        "step": state["step"] + 1,
    }


def _take_rows(cache, rows):
    return keras.tree.map_structure(lambda x: ops.take(x, rows, axis=0), cache)
