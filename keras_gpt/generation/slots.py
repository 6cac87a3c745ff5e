"""`Slots`: prompts that are continued together, and come and go."""

# Axes: b batch, k key-value head, s cache position, h head dimension

import functools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.controls import PENALTIES, check_control
from keras_gpt.generation.form import Form
from keras_gpt.generation.kept import KeptTexts, count_shared
from keras_gpt.generation.outside import is_outside
from keras_gpt.generation.programs import (
    add_token,
    compiled,
    loop_program,
    trace_counts,
)
from keras_gpt.generation.rows import (
    Row,
    adapter_array,
    check_count,
    empty_row,
    form_inputs,
    list_adapters,
    make_rows,
    note_tokens,
    row_inputs,
    start_state,
)
from keras_gpt.token_ids import check_token_ids

_PIECES = 256, 64, 32, 16  # tokens that are read at once
_READ_TOGETHER = 16, 4  # short prompts, in a pass of one of these sizes
_LEAST_ROOM = 128  # of a cache
_LEAST_SHARED = 16  # tokens, fewer are read again
MOST_ALTERNATIVES = 20


@dataclass(kw_only=True, eq=False)
class SlotRow(Row):
    """A prompt in a slot: a `Row`, of which `ids` and `log_probs` are all given out.

    Attributes:
        logit_bias: As of `Slots.add`, as are the next two.
        presence_penalty: 0 changes nothing.
        frequency_penalty: 0 changes nothing.
        num_alternatives: How many are noted of each new id.
        num_in_cache: Tokens of its window whose keys and values are there.
        layers: Its own cache, while it is read.
    """

    logit_bias: dict[int, float]
    presence_penalty: float
    frequency_penalty: float
    num_alternatives: int = 0
    num_in_cache: int = 0
    layers: tuple | None = None

    @property
    def is_adjusted(self) -> bool:
        """Whether tokens are made likelier or less likely."""
        penalties = self.presence_penalty, self.frequency_penalty
        return bool(self.logit_bias) or any(penalties)


def _empty_slot_row():
    """A row that has ended, where a batch has no other."""
    return SlotRow(
        **vars(empty_row()),
        logit_bias={},
        presence_penalty=0.0,
        frequency_penalty=0.0,
    )


class Slots:
    """Prompts that are continued together, and come and go: continuous batching.

    Each row is what `keras_gpt.generate` makes of its prompt alone. What was read is
    kept for a while: of a prompt that begins like an earlier one, or goes on from its
    answer, only the rest is read. One thread may use it, others may generate meanwhile.

    Args:
        model: A `GPT`.
        num_slots: How many prompts go on at once. Defaults to 8.
        kept_tokens: Tokens for whose keys and values there is room beside those of the
            rows that go on. Defaults to 8,192; 0 keeps none.

    Example:

    >>> import keras_gpt
    >>> from keras_gpt.generation import Slots
    >>> config = keras_gpt.GPTConfig(vocab_size=65, context_length=16,
    ...                              embedding_dimension=32, num_layers=1, num_heads=2)
    >>> slots = Slots(keras_gpt.GPT(config), num_slots=2)
    >>> row = slots.add([1, 2], max_new_tokens=4)
    >>> while row.finish_reason is None:
    ...     slots.advance(2)
    >>> len(row.ids), row.finish_reason, slots.num_free
    (4, 'length', 2)
    """

    def __init__(self, model, num_slots: int = 8, *, kept_tokens: int = 8192):
        check_count("num_slots", num_slots)
        check_count("kept_tokens", kept_tokens, least=0)
        if is_outside(model):
            raise ValueError(
                "`Slots` needs a model that Keras runs. Received: "
                f"{type(model).__name__}. Load the model that it was exported from."
            )
        self._model = model
        self._num_slots = num_slots
        self._kept = KeptTexts(kept_tokens)
        self._unread = deque()  # rows that are to be read, the first one next
        self._places = []  # of the batch, with the row that goes on there or `None`
        self._layers = None  # of the batch's cache
        self._has_waited = False  # whether some rows got no token in the last call

    @property
    def num_free(self) -> int:
        """How many prompts could be added now."""
        return self._num_slots - len(self._unread) - len(self._running)

    def add(
        self,
        prompt: Sequence[int],
        *,
        stop_ids: Sequence[int] = (),
        logit_bias: Mapping[int, float] | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        form: Form | None = None,
        num_alternatives: int = 0,
        adapter: str | None = None,
        **controls: Any,
    ) -> SlotRow:
        """Take a prompt, which `advance` will read.

        Args:
            prompt: Token ids.
            stop_ids: Ids that end the row. They are not part of the result.
            logit_bias: What is added to the logits of token ids, from -100 to 100.
            presence_penalty: Taken from the logits of ids that the row has added, from
                -2 to 2.
            frequency_penalty: Taken from them for each time, from -2 to 2.
            form: What the answer must be, for this row alone. Defaults to `None`,
                anything.
            num_alternatives: Of each new id so many of the likeliest are noted, before
                temperature and the rest; at most 20.
            adapter: The name of one of the model's, or `None` for the base alone.
            **controls: By the names in `CONTROLS`, each one value.

        Returns:
            The row: its `ids`, `log_probs` and `finish_reason` grow as it goes on.

        Raises:
            RuntimeError: No slot is free.
            TypeError: A control is unknown.
            ValueError: The prompt or a control is out of its range, or there is no such
                adapter.
        """
        if self.num_free == 0:
            raise RuntimeError(
                f"No slot is free of {self._num_slots}. Advance until a row ends, or "
                "stop one."
            )
        check_count("num_alternatives", num_alternatives, 0, MOST_ALTERNATIVES)
        config = self._model.config
        [row] = make_rows(
            config,
            [prompt],
            num_return_sequences=1,
            adapter=adapter,
            known_adapters=list_adapters(self._model),
            stop_ids=stop_ids,
            **controls,
        )
        row.form = form
        row = SlotRow(
            **vars(row),
            logit_bias=_check_logit_bias(logit_bias or {}, config.vocab_size),
            presence_penalty=check_control("presence_penalty", presence_penalty),
            frequency_penalty=check_control("frequency_penalty", frequency_penalty),
            num_alternatives=min(num_alternatives, config.vocab_size),
        )
        if row.goes_on:
            self._unread.append(row)
        return row

    def stop(self, row: SlotRow) -> None:
        """End a row now, so that its slot is free."""
        if row.goes_on:
            row.is_stopped = True
            self._leave(row)

    def advance(self, num_tokens: int = 8) -> None:
        """Read what was added, and add tokens to all rows that were read.

        Of long prompts a piece is read in each call, so that no other row waits long.
        Where most rows get their first token and no more is wanted, the others may wait
        for the next call.

        Args:
            num_tokens: Most tokens for each row. Defaults to 8.

        Whatever is raised meanwhile, such as `KeyboardInterrupt`, ends all rows.
        """
        check_count("num_tokens", num_tokens)
        try:
            self._advance(num_tokens)
        except BaseException:  # a cache that a program was given may be gone
            for row in (*self._unread, *self._running):
                row.is_stopped = True
            self._unread.clear()
            self._places, self._layers = [], None
            raise

    @property
    def _running(self):
        return [row for row in self._places if row is not None]

    def _advance(self, num_tokens):
        self._reread_full_rows()
        unread = set(self._unread)  # which get a token by being read
        most = _PIECES[0] if self._running else 2 * _PIECES[0]
        num_read = 0
        while self._unread and (num_read < most or not self._running):
            num_read += self._read_some()
        until = {row: num_tokens - (row in unread) for row in self._running}
        # a step for few of the rows can wait, but for one call alone
        is_for_few = num_tokens == 1 and 2 * sum(until.values()) < len(until)
        self._has_waited = is_for_few and not (self._has_waited or self._unread)
        if self._has_waited:
            return
        # each program is looked up once here, not for each token
        find_loop = functools.cache(
            functools.partial(compiled, self._model, loop_program)
        )
        while any(until.values()) and not any(map(self._is_full, self._places)):
            # forms say anew what may follow each token
            has_forms = any(row.form is not None for row in until)
            most = 1 if has_forms else num_tokens
            now = {row: min(left, most) for row, left in until.items()}
            self._decode(most, now, find_loop)
            until = {row: max(until[row] - most, 0) for row in self._running}

    def _is_full(self, row):
        """Whether a row has no room for its last token."""
        most = self._model.config.context_length
        return row is not None and len(row.window) > most

    def _reread_full_rows(self):
        """Let rows whose window is full be read anew, without its older half."""
        for place, row in enumerate(self._places):
            if self._is_full(row):
                self._places[place] = None
                row.forget_half(self._model.config.context_length)
                row.num_in_cache = 0
                self._unread.appendleft(row)

    def _read_some(self):
        """Read a piece of the next row, or some short ones together.

        Returns:
            How many tokens were read.
        """
        row = self._unread[0]
        most = min(_PIECES[1], self._model.config.context_length)
        short = [other for other in self._unread if len(other.window) <= most]
        for size in (min(size, self._num_slots) for size in _READ_TOGETHER):
            rows = short[:size]
            longest = max((len(other.window) for other in rows), default=0)
            is_filled = len(rows) > max(2, size // 2)
            if rows[:1] == [row] and is_filled and size * longest <= _PIECES[0]:
                layers = self._make_layers(size, self._room_for(most))
                self._read(rows, layers, longest)
                return sum(len(other.window) for other in rows)
        if row.layers is None:
            self._begin(row)
        rest = len(row.window) - row.num_in_cache
        size = next(n for n in _PIECES if rest > n // 2 or n == _PIECES[-1])
        return self._read([row], row.layers, min(size, rest))

    def _begin(self, row):
        """Make room for a row's window, with what is kept of its beginning."""
        text = row.window[:-1]  # one is left to read
        shared, layers, index = *self._kept.find(text, row.adapter), 0
        for place, other in enumerate(self._places):
            if other is not None and other.adapter == row.adapter:
                num = count_shared(text, other.window[:-1])
                if num > shared:
                    shared, layers, index = num, self._layers, place
        # fewer lengths than of the batch: for each there are as many programs as pieces
        room = self._room_for(len(row.window), factor=4)
        if shared >= _LEAST_SHARED:
            row.layers = self._copy(layers, [index], room)
            row.num_in_cache = shared
        else:
            row.layers = self._make_layers(1, room)
        if not row.ids:
            row.num_reused = row.num_in_cache

    def _read(self, rows, layers, num_tokens):
        """Read up to so many tokens more of rows, into a cache of theirs.

        Those of which all was read get their next token, and run.
        """
        room = _room(layers)
        size = min(max(backend.bucket(num_tokens), _PIECES[-1]), room)
        # where there is no room for padding, some are read twice
        starts = [min(row.num_in_cache, room - size) for row in rows]
        starts += [0] * (layers[0][0].shape[0] - len(rows))
        token_ids = np.zeros((len(starts), size), "int32")
        lengths = np.ones(len(starts), "int32")
        for i, row in enumerate(rows):
            piece = row.window[starts[i] : starts[i] + size]
            token_ids[i, : len(piece)] = piece
            lengths[i] = len(piece)
            row.num_in_cache = starts[i] + len(piece)
        before = [row.window[:start] for row, start in zip(rows, starts, strict=False)]
        inputs = {
            "token_ids": token_ids,
            "lengths": lengths,
            "position": np.array(starts, "int32"),
            "document_start": self._find_document_starts(before, len(starts)),
        }
        missing = [_empty_slot_row()] * (len(starts) - len(rows))
        inputs |= adapter_array(self._model, rows + missing)
        read = compiled(self._model, _read_program)
        result = read({"layers": layers}, inputs)
        layers = result["layers"]
        if len(rows) == 1:
            rows[0].layers = layers
        if all(row.num_in_cache == len(row.window) for row in rows):
            self._run(rows, layers, result["logits"])
        return size

    def _run(self, rows, layers, logits):
        """Add the first token to rows that were read, and put them into the batch."""
        windows = [row.window for row in rows]
        missing = layers[0][0].shape[0] - len(rows)
        inputs, state = self._make_arrays(rows + [_empty_slot_row()] * missing, 1)
        inputs["logits"] = logits
        choose = compiled(self._model, _choose_program)
        self._note(rows, choose(state, inputs))
        running, places, batch = self._running, self._places, self._layers
        room = self._room_for(max(len(row.window) for row in rows + running))
        # what was read is the batch where there is room in it for those that run
        is_batch = len(running) <= missing and _room(layers) == room
        for i, (row, window) in enumerate(zip(rows, windows, strict=True)):
            self._unread.remove(row)
            row.layers = None
            if not row.goes_on:
                self._keep(row, window, layers, i)
            elif not is_batch:
                self._enter(row, layers, i)
        if is_batch and any(row.goes_on for row in rows):
            self._places = [row if row.goes_on else None for row in rows]
            self._places += [None] * missing
            self._layers = layers
            for row in running:
                self._enter(row, batch, places.index(row))

    def _decode(self, num_tokens, until, find_loop):
        """Add tokens to all rows that run, of which each has its own number."""
        lengths = [len(row.window) - 1 + most for row, most in until.items()]
        room = self._room_for(max(lengths))
        size = self._batch_size(len(lengths))
        # what is larger than it need be is slow; a size that comes and goes is, too
        is_large = not self._unread and size < len(self._places)
        is_long = 4 * room <= _room(self._layers)
        if is_large or is_long or room > _room(self._layers):
            self._resize(size if is_large else len(self._places), room)
        rows = [row or _empty_slot_row() for row in self._places]
        inputs, state = self._make_arrays(rows, num_tokens)
        windows = [row.window for row in rows]
        texts = [window[:-1] for window in windows]
        starts = self._find_document_starts(texts, len(rows))
        state["token"] = np.array([window[-1] for window in windows], "int32")
        state["position"] = np.array([len(window) - 1 for window in windows], "int32")
        cache = _make_cache(self._model, self._layers, starts)
        state["cache"] = cache | adapter_array(self._model, rows)
        inputs["until"] = np.array([until.get(row, 0) for row in rows], "int32")
        loop = find_loop(cache_length=_room(self._layers))
        state = loop(state, inputs)
        self._layers = state["cache"]["layers"]
        self._note(rows, state)
        for row in self._running:
            if not row.goes_on:
                self._leave(row)

    def _make_arrays(self, rows, num_tokens):
        """What the programs read, and what they change, but for the cache."""
        num_new = backend.bucket(max(num_tokens, 8))
        for row in rows:
            row.num_read = len(row.ids)
        inputs = row_inputs(rows, num_new)
        vocab_size = self._model.config.vocab_size
        inputs |= form_inputs(rows, vocab_size)
        state = start_state(rows, num_new, vocab_size)
        asked = [row.is_adjusted for row in rows]
        if any(asked):
            shape = len(rows), vocab_size
            bias, counts = np.zeros(shape, "float32"), np.zeros(shape, "float32")
            penalties = {name: np.zeros(len(rows), "float32") for name in PENALTIES}
            for i in np.flatnonzero(asked):
                row = rows[i]
                bias[i, list(row.logit_bias)] = list(row.logit_bias.values())
                np.add.at(counts[i], row.ids, 1)
                for name, values in penalties.items():
                    values[i] = getattr(row, name)
            inputs |= {"logit_bias": bias, **penalties}
            state["counts"] = counts
        if any(row.num_alternatives for row in rows):
            width = 2 * min(MOST_ALTERNATIVES, vocab_size)
            state["alternatives"] = np.zeros((len(rows), num_new, width), "float32")
        return inputs, state

    def _note(self, rows, state):
        note_tokens(rows, state)
        for i, row in enumerate(rows):
            new = range(row.num_given, len(row.ids))
            if row.num_alternatives and new:
                noted = ops.convert_to_numpy(state["alternatives"][i])[: len(new)]
                log_probs, ids = np.split(noted, 2, axis=-1)
                for pairs in np.stack([ids, log_probs], axis=-1):
                    some = pairs[: row.num_alternatives].tolist()
                    row.alternatives.append([(int(i), x) for i, x in some])
            row.num_given = len(row.ids)

    def _enter(self, row, layers, index):
        """Put a row, whose cache is a row of `layers`, into the batch."""
        room = self._room_for(len(row.window))
        size = self._batch_size(len(self._running) + 1)
        if not self._places:
            self._places = [None] * size
            self._layers = self._make_layers(size, room)
        elif size > len(self._places) or room > _room(self._layers):
            size = max(size, len(self._places))
            self._resize(size, max(room, _room(self._layers)))
        place = self._places.index(None)
        put = compiled(self._model, _put_program)
        inputs = {"from": np.array([index], "int32"), "to": np.array(place, "int32")}
        inputs["layers"] = layers
        self._layers = put({"layers": self._layers}, inputs)["layers"]
        self._places[place] = row

    def _leave(self, row):
        """Take a row that has ended from its slot, and keep what was read of it."""
        if row in self._unread:
            self._unread.remove(row)
            if row.layers is not None:
                self._keep(row, row.window[: row.num_in_cache], row.layers, 0)
                row.layers = None
            return
        place = self._places.index(row)
        # the last token may not have been read
        self._keep(row, row.window[:-1], self._layers, place)
        self._places[place] = None
        if not self._running:
            self._places, self._layers = [], None

    def _keep(self, row, text, layers, index):
        """Keep a row's text, whose cache is a row of `layers`."""
        room = self._room_for(len(text))
        if len(text) >= _LEAST_SHARED and room <= self._kept.most_tokens:
            copied = self._copy(layers, [index], room)
            self._kept.add(text, copied, row.adapter)

    def _resize(self, size, room):
        """Make the batch's cache anew, for so many rows of so many tokens."""
        places = [i for i, row in enumerate(self._places) if row is not None]
        rows = [self._places[i] for i in places]
        missing = size - len(places)
        self._layers = self._copy(self._layers, places + [0] * missing, room)
        self._places = rows + [None] * missing

    def _make_layers(self, size, room):
        return self._model.make_cache_layers(size, room)

    def _copy(self, layers, rows, room):
        """Copy rows of a cache into one with other room."""
        copy = compiled(self._model, _copy_program)
        arrays = {"rows": np.array(rows, "int32"), "places": np.arange(room)}
        return copy({}, {**arrays, "layers": layers})["layers"]

    def _room_for(self, length, factor=2):
        """How many tokens a cache for so many has room for."""
        room = _LEAST_ROOM
        while room < length:
            room *= factor
        return min(room, self._model.config.context_length)

    def _batch_size(self, num_rows):
        """How many rows a batch for so many has: few sizes are compiled for."""
        size = 1
        while size < num_rows:
            size *= 4
        return min(size, self._num_slots)

    def _find_document_starts(self, texts, size):
        """Where the document of what follows each text starts, int32 `(size,)`."""
        starts = np.zeros(size, "int32")
        separator = self._model.config.document_separator_id
        if separator is not None:
            for i, text in enumerate(texts):
                ends = np.flatnonzero(np.array(text) == separator)
                starts[i] = ends[-1] + 1 if len(ends) else 0
        return starts


def _check_logit_bias(logit_bias, vocab_size):
    """The bias of each id, or `ValueError`."""
    for token_id, bias in logit_bias.items():
        is_number = isinstance(bias, Real) and -100 <= bias <= 100
        if not isinstance(token_id, Integral) or not is_number:
            raise ValueError(
                "`logit_bias` must have token ids with numbers from -100 to 100. "
                f"Received: {token_id!r}: {bias!r}."
            )
    if logit_bias:
        check_token_ids(list(logit_bias), vocab_size, name="logit_bias")
    return dict(logit_bias)


def _room(layers):
    """Tokens that a cache has room for."""
    return layers[0][0].shape[2]


def _make_cache(model, layers, document_start):
    cache = {"layers": layers}
    if model.documents is not None:
        cache["document_start"] = document_start
    return cache


def _read_program(model):
    """Make the function that reads a piece of a row's text."""

    def read(state, inputs):
        trace_counts["read"] += 1
        cache = _make_cache(model, state["layers"], inputs["document_start"])
        if "adapter" in inputs:
            cache["adapter"] = inputs["adapter"]
        logits, cache = model.extend(
            inputs["token_ids"], inputs["lengths"], cache, inputs["position"]
        )
        return {"logits": logits, "layers": cache["layers"]}

    return read


def _choose_program(model):
    """Make the function that chooses the token after what was read."""
    del model

    def choose(state, inputs):
        first = ops.zeros_like(state["step"])
        state = {**state, "token": first, "position": first}
        return add_token(inputs["logits"], state, inputs)

    return choose


def _put_program(model):
    """Make the function that puts a row's cache into a batch's."""
    del model

    def put(state, inputs):
        def put_one(batch, rows):
            row = ops.take(rows[:, :, : batch.shape[2]], inputs["from"], axis=0)
            return backend.put_row(batch, row, inputs["to"])

        layers = keras.tree.map_structure(put_one, state["layers"], inputs["layers"])
        return {"layers": layers}

    return put


def _copy_program(model):
    """Make the function that copies rows of a cache, and cuts or pads its room."""
    del model

    def copy(state, inputs):
        del state
        room = inputs["places"].shape[0]  # so that its shape tells it

        def copy_one(layer):
            layer = ops.take(layer[:, :, :room], inputs["rows"], axis=0)
            missing = room - layer.shape[2]
            return ops.pad(layer, [[0, 0], [0, 0], [0, missing], [0, 0]])

        return {"layers": keras.tree.map_structure(copy_one, inputs["layers"])}

    return copy
