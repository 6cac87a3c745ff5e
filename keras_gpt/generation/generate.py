"""Prefill and decode loop: one compiled program for each bucket of shapes."""

# Axes: b batch, n new tokens, v vocabulary

from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.generation.controls import Controls, pad_prompts
from keras_gpt.generation.sampling import (
    choose,
    chosen_log_probs,
    draw_uniforms,
    penalize_repetition,
)


def generate(
    model,
    ids: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int] = 64,
    temperature: float | Sequence[float] = 0.8,
    top_k: int | Sequence[int] | None = 40,
    top_p: float | Sequence[float] | None = None,
    min_p: float | Sequence[float] | None = None,
    repetition_penalty: float | Sequence[float] = 1.0,
    num_beams: int = 1,
    stop_ids: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    num_return_sequences: int = 1,
    lookup_tokens: int = 0,
) -> list[list[int]]:
    """Continue each prompt.

    A row's result depends on its own prompt, controls and seed alone, not on the
    rows beside it. Text may outgrow the model's context: then the older half of it
    is forgotten.

    Args:
        model: A `GPT`.
        ids: Prompts, each a non-empty list of token ids, of any lengths up to the
            model's `context_length`.
        max_new_tokens: Most tokens to add. This and the next five may be one value
            or one for each prompt.
        temperature: Divides the logits before sampling; 0 is greedy.
        top_k: Sample from the `top_k` likeliest tokens only. `None` for all.
        top_p: Sample from the likeliest tokens that have this probability together.
        min_p: Sample from tokens at least this fraction as likely as the likeliest.
        repetition_penalty: Above 1, tokens of the prompt and of the text so far
            become less likely.
        num_beams: Above 1, beam search (`beam_search`), which is deterministic and
            takes neither temperature, `top_k`, `top_p`, `min_p`, `seed` nor
            `lookup_tokens`.
        stop_ids: Ids that end a row. They are not part of the result.
        seed: Of the samples; row `i` takes `seed + i`. A list gives each row's own.
        num_return_sequences: Continuations for each prompt, one after the other in
            the result.
        lookup_tokens: Above 0, each pass of the model reads up to so many tokens more,
            guessed from where a row's last tokens occurred before, and keeps those
            that it would have chosen. The result is the same, in fewer passes where
            the text copies from the prompt or repeats itself. Another value compiles
            anew.

    Returns:
        The new ids of each row, without the prompt.

    Raises:
        ValueError: A prompt is empty, too long or has ids out of range, or a control
            is out of its range.

    Example:

    >>> import keras_gpt
    >>> config = keras_gpt.GPTConfig(vocab_size=65, context_length=16,
    ...                              embedding_dimension=32, num_layers=1, num_heads=2)
    >>> model = keras_gpt.GPT(config)
    >>> new = keras_gpt.generate(model, [[1, 2, 3], [4]], max_new_tokens=5)
    >>> [len(row) for row in new]
    [5, 5]
    """
    if num_beams != 1:
        from keras_gpt.generation.beam import beam_search

        return beam_search(
            model,
            ids,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty,
            stop_ids=stop_ids,
            num_return_sequences=num_return_sequences,
        )
    run = Generation(
        model,
        ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop_ids=stop_ids,
        seed=seed,
        num_return_sequences=num_return_sequences,
        lookup_tokens=lookup_tokens,
    )
    run.advance()
    return run.ids


class Generation:
    """Prompts that are being continued, a few tokens at a time or all at once.

    Args:
        model: A `GPT`.
        prompts: As `ids` of `generate`.
        **controls: The other arguments of `generate`, but for `num_beams`.

    Attributes:
        ids: The new ids of each row so far.
        log_probs: For each of them its log-probability in nats under the model,
            before temperature, penalty and truncation.

    Example:

    >>> import keras_gpt
    >>> from keras_gpt.generation import Generation
    >>> config = keras_gpt.GPTConfig(vocab_size=65, context_length=16,
    ...                              embedding_dimension=32, num_layers=1, num_heads=2)
    >>> run = Generation(keras_gpt.GPT(config), [[1, 2]], max_new_tokens=4)
    >>> while not run.finished:
    ...     new = run.advance(2)
    >>> len(run.ids[0]), run.finish_reasons
    (4, ['length'])
    """

    def __init__(self, model, prompts, *, lookup_tokens=0, **controls):
        if not isinstance(lookup_tokens, int) or lookup_tokens < 0:
            raise ValueError(
                "`lookup_tokens` must be an integer of at least 0 (0 looks nothing "
                f"up). Received: lookup_tokens={lookup_tokens!r}."
            )
        self._model = model
        # no draft reaches beyond the context
        self._lookup_tokens = min(lookup_tokens, model.config.context_length - 1)
        self._controls = Controls.check(model.config, prompts, **controls)
        self._prompts = self._controls.prompts
        rows = len(self._prompts)
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.log_probs: list[list[float]] = [[] for _ in range(rows)]
        # with drafts they run ahead of what `advance` was asked for
        self._chosen = [([], []) for _ in range(rows)]
        self._stopped = np.zeros(rows, bool)
        self._done = self._controls.max_new_tokens == 0
        self._window_starts = [0] * rows
        self._state = None

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return None not in self.finish_reasons

    @property
    def finish_reasons(self) -> list[str | None]:
        """For each row `"stop"`, `"length"`, or `None` while it goes on."""
        reasons = []
        for row, ids in enumerate(self.ids):
            if self._stopped[row]:
                reasons.append("stop")
            elif not self._done[row] or len(ids) < len(self._chosen[row][0]):
                reasons.append(None)
            else:
                is_full = len(ids) == self._controls.max_new_tokens[row]
                reasons.append("length" if is_full else "stop")
        return reasons

    @property
    def num_lookup_passes(self) -> int:
        """How often the model ran to add tokens with `lookup_tokens`."""
        is_known = self._lookup_tokens and self._state is not None
        return int(self._state["passes"]) if is_known else 0

    def stop(self, row: int) -> None:
        """End a row, for example because its text holds a stop string."""
        self._stopped[row] = True

    def advance(self, num_tokens: int | None = None) -> list[list[int]]:
        """Add up to `num_tokens` tokens to each row that goes on.

        Args:
            num_tokens: Defaults to `None`, all that remain.

        Returns:
            The ids that this call added to each row.
        """
        before = [len(ids) for ids in self.ids]
        until = self._controls.max_new_tokens
        if num_tokens is not None:
            until = np.minimum(until, np.array(before, int) + max(num_tokens, 0))
        while self._is_below(until):
            if self._state is None or self._is_full():
                self._prefill()
            else:
                self._loop(until)
            self._read()
        for row in np.flatnonzero(~self._stopped):
            ids, log_probs = self._chosen[row]
            self.ids[row] = ids[: until[row]]
            self.log_probs[row] = log_probs[: until[row]]
        return [ids[n:] for ids, n in zip(self.ids, before, strict=True)]

    def _is_below(self, until):
        """Whether a row that goes on has fewer tokens than it should."""
        counts = np.array([len(ids) for ids, _ in self._chosen], int)
        return bool(np.any(~self._done & ~self._stopped & (counts < until)))

    def _is_full(self):
        """Whether a row that goes on has no room for its last token."""
        return any(
            len(self._prompts[row]) + len(self._chosen[row][0]) - start
            > self._model.config.context_length
            for row, start in enumerate(self._window_starts)
            if not (self._done[row] or self._stopped[row])
        )

    def _prefill(self):
        """Read each row's window of its text, and choose its next token."""
        context_length = self._model.config.context_length
        windows = []
        for row, prompt in enumerate(self._prompts):
            text = prompt + self._chosen[row][0]
            if self._done[row] or self._stopped[row]:
                windows.append(text[:1])
                continue
            if len(text) - self._window_starts[row] > context_length:
                self._window_starts[row] = len(text) - max(1, context_length // 2)
            windows.append(text[self._window_starts[row] :])
        longest = max(
            len(prompt) + int(n)
            for prompt, n in zip(
                self._prompts, self._controls.max_new_tokens, strict=True
            )
        )
        # a power of two on every backend: PyTorch records a step for each length
        cache_length = min(1 << max(longest - 1, 15).bit_length(), context_length)
        prefill = compiled(
            self._model,
            prefill_program,
            cache_length=cache_length + self._lookup_tokens,
        )
        # looked up once here, not for each token of a stream
        self._decode_loop = self._compiled_loop(cache_length)
        token_ids, lengths = pad_prompts(windows, self._model.config)
        if self._state is None:
            self._inputs, state = self._start(len(token_ids))
        else:
            carried = (*CARRIED, "passes") if self._lookup_tokens else CARRIED
            state = {name: self._state[name] for name in carried}
            state["done"] = self._with_stopped(state["done"])
        if self._lookup_tokens:
            room = [(0, 0), (0, cache_length - token_ids.shape[1])]
            state["text"] = ops.convert_to_tensor(np.pad(token_ids, room))
        inputs = {
            **self._inputs,
            "token_ids": ops.convert_to_tensor(token_ids),
            "lengths": ops.convert_to_tensor(lengths),
        }
        self._state = prefill(state, inputs)

    def _compiled_loop(self, cache_length):
        if not self._lookup_tokens:
            return compiled(self._model, loop_program, cache_length=cache_length)
        from keras_gpt.generation.lookup import lookup_program

        return compiled(
            self._model,
            lookup_program,
            cache_length=cache_length,
            lookup_tokens=self._lookup_tokens,
        )

    def _start(self, padded_rows):
        """Inputs that stay, and the state before the first token."""
        controls = self._controls
        num_new = backend.bucket(max(int(controls.max_new_tokens.max()), 16))
        inputs = controls.tensors(padded_rows)
        uniforms = np.zeros((padded_rows, num_new), "float32")
        uniforms[: len(controls.seeds)] = draw_uniforms(controls.seeds, num_new)
        inputs["uniforms"] = ops.convert_to_tensor(uniforms)
        done = np.ones(padded_rows, bool)
        done[: len(self._prompts)] = self._done
        state = {
            "seen": controls.seen(padded_rows, self._model.config.vocab_size),
            "done": done,
            "tokens": np.full((padded_rows, num_new), -1, "int32"),
            "log_probs": np.zeros((padded_rows, num_new), "float32"),
            "step": np.zeros((), "int32"),
        }
        if self._lookup_tokens:
            state["step"] = np.zeros(padded_rows, "int32")
            state["passes"] = np.zeros((), "int32")
        state = {name: ops.convert_to_tensor(array) for name, array in state.items()}
        return inputs, state

    def _loop(self, until):
        if self._lookup_tokens:
            room = (0, len(self._inputs["max_new_tokens"]) - len(until))
            until = np.pad(until.astype("int32"), room)
        else:  # the rows that go on are at the same step
            until = np.int32(until[~(self._done | self._stopped)].max())
        inputs = {**self._inputs, "until": ops.convert_to_tensor(until)}
        self._state["done"] = self._with_stopped(self._state["done"])
        self._state = self._decode_loop(self._state, inputs)

    def _with_stopped(self, done):
        if not self._stopped.any():
            return done
        done = np.array(ops.convert_to_numpy(done))
        done[: len(self._stopped)] |= self._stopped
        return ops.convert_to_tensor(done)

    def _read(self):
        """Copy what the program wrote."""
        tokens = np.array(ops.convert_to_numpy(self._state["tokens"]))
        log_probs = np.array(ops.convert_to_numpy(self._state["log_probs"]))
        done = np.array(ops.convert_to_numpy(self._state["done"]))
        self._done = done[: len(self._prompts)]
        for row in np.flatnonzero(~self._stopped):
            new = tokens[row][tokens[row] >= 0]
            self._chosen[row] = new.tolist(), log_probs[row][: len(new)].tolist()


# what a row keeps when its context is read anew
CARRIED = ("seen", "done", "tokens", "log_probs", "step")


def compiled(model, program, **static):
    """The compiled `program(model, **static)`, made once for each model.

    The key holds the model's variables, since quantization and LoRA replace some.
    """
    variables = model.variables
    # not an attribute of the model: Keras would track and wrap the dictionary
    programs = model.__dict__.setdefault("_compiled_programs", {})
    key = (program, *static.items(), *(id(variable) for variable in variables))
    if key not in programs:
        programs[key] = backend.compile_function(program(model, **static), variables)
    return programs[key]


# How often a program was traced, by name: tests count that nothing is traced twice.
trace_counts = {"prefill": 0, "loop": 0, "lookup": 0, "beam": 0}


def prefill_program(model, cache_length):
    """Make the function that reads the prompts and chooses the first token."""

    def prefill(state, inputs):
        trace_counts["prefill"] += 1
        lengths = inputs["lengths"]
        logits, cache = model.prefill(inputs["token_ids"], lengths, cache_length)
        first = ops.zeros_like(lengths)
        state = {**state, "cache": cache, "token": first, "position": lengths - 1}
        return add_token(logits, state, inputs)

    return prefill


def loop_program(model, cache_length):
    """Make the loop that decodes until the rows end, fill up, or `until` is reached."""
    decode = backend.record_step(lambda *arguments: model.decode(*arguments))

    def loop(state, inputs):
        trace_counts["loop"] += 1

        def goes_on(state):
            return has_work(state, inputs["until"], cache_length)

        def step(state):
            position = ops.minimum(state["position"], cache_length - 1)
            logits, cache = decode(state["token"], state["cache"], position)
            return (add_token(logits, {**state, "cache": cache}, inputs),)

        return ops.while_loop(goes_on, step, (state,))[0]

    return loop


def has_work(state, until, cache_length):
    """Whether a row is to go on, and all that go on have room in the cache.

    Args:
        state: The loop's.
        until: The step to stop at, of all rows or `(b,)` of each.
        cache_length: Tokens that the cache has room for.
    """
    has_room = state["position"] < cache_length
    ready = ops.all(ops.logical_or(state["done"], has_room))
    is_below = ops.logical_and(ops.logical_not(state["done"]), state["step"] < until)
    return ops.logical_and(ops.any(is_below), ready)


def add_token(logits, state, inputs):
    """Choose each row's next token and note it where the row goes on."""
    step, done = state["step"], state["done"]
    index = ops.arange(state["tokens"].shape[1], dtype="int32")
    at_step = ops.equal(index, step[..., None])  # (n,), or (b, n) of each row's own
    uniforms = ops.sum(ops.where(at_step, inputs["uniforms"], 0.0), axis=1)
    token = choose(
        penalize_repetition(logits, state["seen"], inputs["repetition_penalty"]),
        temperature=inputs["temperature"],
        top_k=inputs["top_k"],
        top_p=inputs["top_p"],
        min_p=inputs["min_p"],
        uniforms=uniforms,
    )
    log_probs = chosen_log_probs(logits, token)
    is_stop = ops.any(ops.equal(token[:, None], inputs["stop_ids"]), axis=1)
    noted = ops.logical_and(
        at_step, ops.logical_not(ops.logical_or(done, is_stop))[:, None]
    )
    token = ops.where(done, state["token"], token)
    is_token = ops.equal(
        ops.arange(state["seen"].shape[1], dtype="int32"), token[:, None]
    )
    is_last = step + 1 >= inputs["max_new_tokens"]
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
