"""Beam search."""

# Axes: b batch, k beam, n new tokens, v vocabulary

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.generation.programs import compiled, trace_counts
from keras_gpt.generation.rows import (
    adapter_array,
    check_count,
    control_arrays,
    fill_bucket,
    mark_seen,
    pad_prompts,
    stop_array,
)
from keras_gpt.generation.run import Run
from keras_gpt.generation.sampling import penalize_repetition

_NEVER = -1e30


class BeamSearch(Run):
    """The likeliest continuations of prompts that a beam search finds.

    At every step the `num_beams` likeliest continuations of all beams stay; a beam
    that met a stop id stays as it is while it is among them.

    Args:
        model: A `GPT`.
        prompts: As `ids` of `keras_gpt.generate`.
        num_beams: Number of beams; 1 is greedy.
        length_penalty: At the end, each beam's log-probability is divided by its
            length to this power; above 0 favours longer text. Defaults to 1.
        num_return_sequences: How many of the best beams to return for each prompt.
        **options: As of `Run`; controls of sampling are checked alone.

    Raises:
        ValueError: As `keras_gpt.generate`; and where prompt and new tokens don't fit
            the model's context.
    """

    def __init__(
        self,
        model,
        prompts: Sequence[Sequence[int]],
        *,
        num_beams: int,
        length_penalty: float = 1.0,
        num_return_sequences: int = 1,
        **options,
    ):
        check_count("num_beams", num_beams)
        if not math.isfinite(length_penalty):
            raise ValueError(
                "`length_penalty` must be a finite number. Received: "
                f"length_penalty={length_penalty!r}."
            )
        if num_return_sequences > num_beams:
            raise ValueError(
                "`num_return_sequences` must be from 1 to `num_beams`. Received: "
                f"num_return_sequences={num_return_sequences}, num_beams={num_beams}."
            )
        options["num_return_sequences"] = num_return_sequences
        super().__init__(model, prompts, **options)
        self._num_beams = num_beams
        self._num_returned = num_return_sequences
        self._length_penalty = length_penalty
        lengths = [len(row.prompt) + row.max_new_tokens for row in self.rows]
        self._longest = max(lengths, default=0)
        if self._longest > model.config.context_length + 1:
            raise ValueError(
                "Beam search needs room for prompt and new tokens in the model's "
                f"context. Received: {self._longest} tokens, "
                f"context_length={model.config.context_length}. Lower max_new_tokens "
                "or shorten the prompt."
            )

    def _advance(self, num_tokens):
        prompts = fill_bucket(self.rows[:: self._num_returned])  # a row for each
        config = self._model.config
        num_new = backend.bucket(max(16, *(row.max_new_tokens for row in prompts)))
        cache_length = backend.bucket(max(self._longest, 16))
        program = compiled(
            self._model,
            beam_program,
            num_beams=self._num_beams,
            num_new=num_new,
            cache_length=min(cache_length, config.context_length),
        )
        arrays = control_arrays(prompts)
        arrays |= adapter_array(self._model, prompts)
        arrays["stop_ids"] = stop_array(prompts)
        arrays["seen"] = mark_seen(prompts, config.vocab_size)
        arrays["token_ids"], arrays["lengths"] = pad_prompts(
            [row.prompt for row in prompts], config
        )
        result = program({}, arrays)
        result = {name: ops.convert_to_numpy(x) for name, x in result.items()}
        counts = np.maximum(result["counts"], 1)
        scores = result["scores"] / counts**self._length_penalty  # (b, k)
        ranking = np.argsort(-scores, axis=1, kind="stable")
        for i, row in enumerate(self.rows):
            prompt, rank = divmod(i, self._num_returned)
            beam = prompt, ranking[prompt, rank]
            is_token = result["tokens"][beam] >= 0  # (n,)
            row.ids = result["tokens"][beam][is_token].tolist()
            row.log_probs = result["log_probs"][beam][is_token].tolist()
            row.num_given = len(row.ids)
            row.has_ended = True


def beam_search(model, ids: Sequence[Sequence[int]], **controls) -> list[list[int]]:
    """Continue each prompt by a `BeamSearch`, which has the arguments.

    Returns:
        The new ids of each row, without the prompt.
    """
    search = BeamSearch(model, ids, **controls)
    search.advance()
    return search.ids


def beam_program(model, num_beams, num_new, cache_length):
    """Make the function that searches from the prompts to the end."""

    def search(state, inputs):  # `state` is empty: nothing is given to be reused
        trace_counts["beam"] += 1
        lengths = inputs["lengths"]
        b, k = lengths.shape[0], num_beams
        adapter = inputs.get("adapter")
        token_ids = inputs["token_ids"]
        logits, cache = model.prefill(token_ids, lengths, cache_length, adapter)
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
            "log_probs": ops.zeros((b, k, num_new), "float32"),
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
        names = ("tokens", "log_probs", "scores", "counts")
        return {name: result[name] for name in names}

    return search


def _extend(logits, state, inputs):
    """Keep the likeliest one-token extensions of each row's beams."""
    b, k = state["scores"].shape
    v = logits.shape[-1]
    plain = ops.reshape(ops.log_softmax(logits, axis=-1), (b, k * v))
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
    stop_ids = inputs["stop_ids"][:, None]
    is_stop = ops.any(ops.equal(token[:, :, None], stop_ids), axis=-1)
    is_last = (state["step"] + 1 >= inputs["max_new_tokens"])[:, None]
    tokens, log_probs = of_parent(state["tokens"]), of_parent(state["log_probs"])
    chosen = ops.take_along_axis(plain, best, axis=1)  # (b, k)
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
        "log_probs": ops.where(noted, chosen[:, :, None], log_probs),
        "step": state["step"] + 1,
    }


def _take_rows(cache, rows):
    return keras.tree.map_structure(lambda x: ops.take(x, rows, axis=0), cache)
