"""`Generation`: prompts that are being continued, a few tokens at a time."""

import numpy as np
from keras import ops

from keras_gpt.generation.form import Form
from keras_gpt.generation.lookup import PromptLookup
from keras_gpt.generation.outside import Outside, is_outside
from keras_gpt.generation.programs import OneByOne
from keras_gpt.generation.rows import (
    adapter_array,
    fill_bucket,
    form_inputs,
    list_adapters,
    make_rows,
    note_tokens,
    pad_prompts,
    row_inputs,
    start_state,
)


class Run:
    """Prompts that are being continued; what `Generation` and `BeamSearch` share.

    Args:
        model: A `GPT`.
        prompts: As `ids` of `keras_gpt.generate`.
        form: What each answer must be, of which each row gets a copy. Defaults to
            `None`, anything.
        **options: `num_return_sequences`, `adapter`, `stop_ids`, and by the names in
            `CONTROLS`.

    Attributes:
        rows: What is known of each row, a `Row`.
    """

    def __init__(self, model, prompts, *, form: Form | None = None, **options):
        options["known_adapters"] = list_adapters(model)
        self.rows = make_rows(model.config, prompts, **options)
        for row in self.rows if form is not None else ():
            row.form = form.copy()
        self._model = model

    @property
    def ids(self) -> list[list[int]]:
        """The new ids of each row so far."""
        return [row.ids[: row.num_given] for row in self.rows]

    @property
    def log_probs(self) -> list[list[float]]:
        """For each of them its log-probability in nats under the model.

        That is before temperature, penalty and truncation.
        """
        return [row.log_probs[: row.num_given] for row in self.rows]

    @property
    def finish_reasons(self) -> list[str | None]:
        """For each row `"stop"`, `"length"`, or `None` while it goes on."""
        return [row.finish_reason for row in self.rows]

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return None not in self.finish_reasons

    def advance(self, num_tokens: int | None = None) -> list[list[int]]:
        """Add up to `num_tokens` tokens to each row that goes on.

        Args:
            num_tokens: Defaults to `None`, all that remain. Beams add all at once,
                since none of their tokens is certain before the end.

        Returns:
            The ids that this call added to each row.
        """
        before = [row.num_given for row in self.rows]
        if not self.finished:
            self._advance(num_tokens)
        return [
            row.ids[n : row.num_given] for row, n in zip(self.rows, before, strict=True)
        ]

    def stop(self, row: int) -> None:
        """End a row, for example because its text holds a stop string."""
        self.rows[row].is_stopped = True


class Generation(Run):
    """Prompts that are being continued, a few tokens at a time or all at once.

    Args:
        model: A `GPT`.
        prompts: As `ids` of `keras_gpt.generate`.
        lookup_tokens: As of `keras_gpt.generate`.
        **options: As of `Run`.

    Attributes:
        num_lookup_passes: How often the model ran to add tokens with `lookup_tokens`.

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

    def __init__(self, model, prompts, *, lookup_tokens=0, **options):
        super().__init__(model, prompts, **options)
        self.num_lookup_passes = 0
        self._filled = fill_bucket(self.rows)
        # no draft reaches beyond the context
        lookup_tokens = min(lookup_tokens, model.config.context_length - 1)
        self._decoding = PromptLookup(lookup_tokens) if lookup_tokens else OneByOne()
        if is_outside(model):
            self._decoding = Outside()
        self._state = None

    def _advance(self, num_tokens):
        until = [row.max_new_tokens for row in self._filled]
        if num_tokens is not None:
            until = [
                min(most, row.num_given + max(num_tokens, 0))
                for most, row in zip(until, self._filled, strict=True)
            ]
        while any(
            row.goes_on and len(row.ids) < end
            for row, end in zip(self._filled, until, strict=True)
        ):
            if self._state is None or any(map(self._is_full, self._filled)):
                self._prefill()
            else:
                self._decode(until)
            note_tokens(self._filled, self._state)
            self.num_lookup_passes = int(self._state["passes"])
        for row, end in zip(self.rows, until, strict=False):
            if not row.is_stopped:
                row.num_given = min(len(row.ids), end)

    def _is_full(self, row):
        """Whether a row that goes on has no room for its last token."""
        length = len(row.prompt) + len(row.ids) - row.window_start
        return row.goes_on and length > self._model.config.context_length

    def _prefill(self):
        """Read each row's window of its text, and choose its next token."""
        rows, context_length = self._filled, self._model.config.context_length
        windows = []
        for row in rows:
            if self._is_full(row):
                row.forget_half(context_length)
            row.num_read = len(row.ids)
            windows.append(row.window if row.goes_on else row.prompt[:1])
        token_ids, lengths = pad_prompts(windows, self._model.config)
        longest = max(len(row.prompt) + row.max_new_tokens for row in rows)
        cache_length = min(_power_of_two(longest), context_length)
        prefill = self._decoding.prefill(self._model, cache_length)
        # looked up once here, not for each token of a stream
        self._loop = self._decoding.loop(self._model, cache_length)
        num_new = max(row.max_new_tokens for row in rows)
        num_new = _power_of_two(min(num_new, context_length))
        vocab_size = self._model.config.vocab_size
        inputs = row_inputs(rows, num_new)
        inputs |= form_inputs(rows, vocab_size) | adapter_array(self._model, rows)
        state = start_state(rows, num_new, vocab_size)
        state["passes"] = np.array(self.num_lookup_passes, "int32")
        window = {"token_ids": token_ids, "lengths": lengths}
        self._state = prefill(state, inputs | window)
        inputs |= self._decoding.inputs(token_ids, lengths)
        # once here, not for each token of a stream
        self._inputs = {k: ops.convert_to_tensor(v) for k, v in inputs.items()}

    def _decode(self, until):
        """Add tokens until a row is full, or all have as many as they should.

        Where rows have forms, which say anew what may follow, it is one.
        """
        rows = self._filled
        forms = form_inputs(rows, self._model.config.vocab_size)
        if forms:
            until = [
                min(end, len(r.ids) + 1) for end, r in zip(until, rows, strict=True)
            ]
        ends = [end - row.num_read for end, row in zip(until, rows, strict=True)]
        done = np.array([not row.goes_on for row in rows])
        changed = {"until": np.array(ends, "int32"), **forms}
        state = {**self._state, "done": done}
        self._state = self._loop(state, {**self._inputs, **changed})


def _power_of_two(size):
    """The least that is no less, nor below 16.

    On every backend: PyTorch records its steps for each length.
    """
    return 1 << max(size - 1, 15).bit_length()
