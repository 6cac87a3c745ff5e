"""`Row`: a prompt that is being continued, with what was asked of it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.config import GPTConfig, suggest
from keras_gpt.controls import CONTROLS, FORMS, OTHER_CONTROLS, spread_control
from keras_gpt.generation.form import Form
from keras_gpt.generation.sampling import draw_uniforms
from keras_gpt.token_ids import check_token_ids

_STOP_IDS_ROOM = 8  # stop ids are padded to a multiple of this


@dataclass(kw_only=True, eq=False)
class Row:
    """A prompt that is being continued.

    Attributes:
        prompt: Token ids.
        max_new_tokens: As of `keras_gpt.generate`, as are the next six.
        temperature: 0 is greedy.
        top_k: 2**30 for no limit.
        top_p: 1 for no limit.
        min_p: 0 for no limit.
        repetition_penalty: 1 changes nothing.
        seed: Of its samples.
        form: Which its answer shall have, if any.
        adapter: The number of its adapter among those of the model, 0 for none.
        stop_ids: Ids that end it, int32, as `check_stop_ids` returns them.
        ids: The new ids, which may run ahead of those that were given out.
        log_probs: Of each of them.
        alternatives: Of each of them the likeliest in its place, with their
            log-probabilities, the likeliest first, where they are noted.
        num_reused: Tokens of the prompt that were not read again.
        num_given: How many of them a caller has.
        window_start: Where in its text the part begins that the model sees.
        num_read: How many of `ids` were there when the model read that part.
        has_ended: Whether a stop id or the last token came.
        is_stopped: Whether it was ended from outside.
    """

    prompt: list[int]
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    form: Form | None = None
    adapter: int = 0
    stop_ids: np.ndarray = field(default_factory=lambda: check_stop_ids((), 0))
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    alternatives: list[list[tuple[int, float]]] = field(default_factory=list)
    num_reused: int = 0
    num_given: int = 0
    window_start: int = 0
    num_read: int = 0
    has_ended: bool = False
    is_stopped: bool = False

    @property
    def window(self) -> list[int]:
        """The part of its text that the model sees."""
        return (self.prompt + self.ids)[self.window_start :]

    def forget_half(self, context_length: int) -> None:
        """Let the model see the newer half of a text that outgrew its context."""
        length = len(self.prompt) + len(self.ids)
        self.window_start = length - max(1, context_length // 2)

    @property
    def goes_on(self) -> bool:
        """Whether there are tokens to add."""
        return not (self.has_ended or self.is_stopped)

    @property
    def finish_reason(self) -> str | None:
        """`"stop"`, `"length"`, or `None` while it goes on."""
        if self.is_stopped:
            return "stop"
        if not self.has_ended or self.num_given < len(self.ids):
            return None
        if self.form is not None and self.form.is_over:
            return "stop"
        return "length" if self.num_given == self.max_new_tokens else "stop"


def make_rows(
    config: GPTConfig,
    prompts,
    *,
    num_return_sequences: int = 1,
    adapter: str | Sequence[str | None] | None = None,
    known_adapters: Sequence[str] = (),
    stop_ids: Sequence[int] | Sequence[Sequence[int]] = (),
    **controls,
) -> list[Row]:
    """Check prompts and controls; see `keras_gpt.generate` for the arguments.

    Args:
        config: The model's.
        prompts: Lists of token ids.
        num_return_sequences: Rows for each prompt.
        adapter: A name, or `None` for none, or a list of these for each prompt.
        known_adapters: Names of the model's adapters.
        stop_ids: Token ids, or a list of these for each prompt.
        **controls: By the names in `CONTROLS`, each one value or one a prompt.

    Raises:
        TypeError: A control is unknown.
        ValueError: A prompt or a control is out of its range, or there is no such
            adapter.
    """
    for name in controls:
        if name not in CONTROLS:
            known = (*CONTROLS, *OTHER_CONTROLS)
            raise TypeError(
                f"Unknown control. {suggest('control', name, known, FORMS)}"
            )
    prompts = check_prompts(prompts, config)
    adapters = find_adapters(known_adapters, adapter, len(prompts))
    stop_ids = _spread_stop_ids(stop_ids, len(prompts), config.vocab_size)
    check_count("num_return_sequences", num_return_sequences)
    values = {
        name: spread_control(name, controls.get(name, control.default), len(prompts))
        for name, control in CONTROLS.items()
    }
    if isinstance(controls.get("seed", 0), Integral):  # counted up from one
        step = num_return_sequences
        values["seed"] = [s + step * i for i, s in enumerate(values["seed"])]
    rows = []
    for i, prompt in enumerate(prompts):
        asked = {name: values[name][i] for name in values}
        asked |= {"adapter": adapters[i], "stop_ids": stop_ids[i]}
        for k in range(num_return_sequences):
            rows.append(Row(prompt=prompt, **asked | {"seed": asked["seed"] + k}))
            rows[-1].has_ended = rows[-1].max_new_tokens == 0
    return rows


def find_adapters(
    known_adapters: Sequence[str],
    adapter: str | Sequence[str | None] | None,
    num_prompts: int,
) -> list[int]:
    """The number of each prompt's adapter, 0 for none.

    Args:
        known_adapters: Names of the model's adapters.
        adapter: As of `make_rows`.
        num_prompts: How many there are.

    Raises:
        ValueError: There is no such adapter.
    """
    is_one = adapter is None or isinstance(adapter, str)
    names = [adapter] * num_prompts if is_one else list(adapter)
    if len(names) != num_prompts:
        raise ValueError(
            f"`adapter` must be one name or one for each of the {num_prompts} prompts. "
            f"Received: {len(names)} names."
        )
    known = [None, *known_adapters]
    for name in names:
        if name not in known:
            has = ", ".join(map(repr, known[1:])) or "none"
            raise ValueError(
                f"`adapter` must be None or the name of one of the model's: {has}. "
                f"Received: {name!r}."
            )
    return [known.index(name) for name in names]


def list_adapters(model) -> list[str]:
    """Names of a model's adapters; one of another engine has none."""
    adapters = getattr(model, "adapters", None)
    return [] if adapters is None else list(adapters.ranks)


def adapter_array(model, rows: list[Row]) -> dict[str, np.ndarray]:
    """What the programs read of each row's adapter: nothing where there are none."""
    if not list_adapters(model):
        return {}
    return {"adapter": np.array([row.adapter for row in rows], "int32")}


def fill_bucket(rows: list[Row]) -> list[Row]:
    """The rows, and some that have ended, so that few numbers are compiled for."""
    missing = backend.bucket(len(rows)) - len(rows)
    return rows + [empty_row() for _ in range(missing)]


def empty_row() -> Row:
    """A row that has ended."""
    off = {name: control.off for name, control in CONTROLS.items()}
    off |= {"max_new_tokens": 0, "temperature": 0.0, "seed": 0}
    return Row(prompt=[0], has_ended=True, **off)


def control_arrays(rows: list[Row]) -> dict[str, np.ndarray]:
    """What the samplers take of each row's controls, arrays `(batch,)`."""
    names = set(CONTROLS) - {"seed", "max_new_tokens"}
    values = {name: [getattr(row, name) for row in rows] for name in names}
    values["max_new_tokens"] = [row.max_new_tokens - row.num_read for row in rows]
    return {
        # a limit beyond int32 is no limit
        name: np.minimum(value, 2**30).astype(CONTROLS[name].dtype)
        for name, value in values.items()
    }


def start_state(rows: list[Row], num_new: int, vocab_size: int) -> dict:
    """What the programs change of each row, with room for `num_new` tokens."""
    return {
        "seen": mark_seen(rows, vocab_size),
        "done": np.array([not row.goes_on for row in rows]),
        "tokens": np.full((len(rows), num_new), -1, "int32"),
        "log_probs": np.zeros((len(rows), num_new), "float32"),
        "step": np.zeros(len(rows), "int32"),
    }


def row_inputs(rows: list[Row], num_new: int) -> dict:
    """What the programs read of each row, for `num_new` tokens."""
    uniforms = [draw_uniforms([row.seed], num_new, row.num_read) for row in rows]
    arrays = control_arrays(rows) | {"uniforms": np.concatenate(uniforms)}
    return arrays | {"stop_ids": stop_array(rows)}


def stop_array(rows: list[Row]) -> np.ndarray:
    """The stop ids of each row, int32 `(batch, number)`, padded with -1."""
    stop_ids = np.full((len(rows), max(len(row.stop_ids) for row in rows)), -1, "int32")
    for i, row in enumerate(rows):
        stop_ids[i, : len(row.stop_ids)] = row.stop_ids
    return stop_ids


def form_inputs(rows: list[Row], vocab_size: int) -> dict:
    """What the programs read of the forms of rows, nothing where no row has one."""
    if all(row.form is None for row in rows):
        return {}
    anything = np.ones(vocab_size, bool)
    forms = [row.form if row.goes_on else None for row in rows]
    allowed = [anything if form is None else form.allowed for form in forms]
    return {"allowed": np.stack(allowed)}


def note_tokens(rows: list[Row], state: dict) -> None:
    """Copy what the programs wrote for the rows that go on."""
    tokens, log_probs, done = (
        ops.convert_to_numpy(state[name]) for name in ("tokens", "log_probs", "done")
    )
    for i, row in enumerate(rows):
        if row.goes_on:
            known = len(row.ids) - row.num_read
            new = tokens[i, known:]
            new = new[new >= 0].tolist()
            row.ids += new
            row.log_probs += log_probs[i, known : known + len(new)].tolist()
            row.has_ended = bool(done[i])
            if row.form is not None:
                row.form.advance(new)
                row.has_ended |= row.form.is_over


def mark_seen(rows: list[Row], vocab_size: int) -> np.ndarray:
    """Booleans `(batch, vocab_size)`: the tokens of each row's text."""
    seen = np.zeros((len(rows), vocab_size), bool)
    for i, row in enumerate(rows):
        seen[i, row.prompt + row.ids] = True
    return seen


def check_prompts(
    prompts, config: GPTConfig, *, most: int | None = None
) -> list[list[int]]:
    """Return the prompts as lists, or raise `ValueError` naming the wrong one.

    Args:
        prompts: Lists of token ids.
        config: The model's.
        most: Longest prompt. Defaults to `context_length`.
    """
    most = most or config.context_length
    if isinstance(prompts, str) or not isinstance(prompts, Sequence | np.ndarray):
        raise ValueError(
            "`ids` must be a list of prompts, each a list of token ids. Received: "
            f"{type(prompts).__name__}."
        )
    checked = []
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, Sequence | np.ndarray) or isinstance(prompt, str):
            raise ValueError(
                "`ids` must be a list of prompts, each a list of token ids. Received "
                f"at {row}: {prompt!r}. For one prompt write [ids]."
            )
        if len(prompt) == 0:
            raise ValueError(
                f"Prompt {row} is empty. Give at least one token, for example the "
                "end-of-text token."
            )
        if len(prompt) > most:
            raise ValueError(
                f"Prompt {row} is longer than the model's context. Received: "
                f"{len(prompt)} tokens, context_length={config.context_length}. Keep "
                f"the last {most} of them."
            )
        checked.append(check_token_ids(prompt, config.vocab_size).tolist())
    return checked


def check_count(name: str, value, least: int = 1, most: float = math.inf) -> None:
    """Raise `ValueError` unless the value is an integer from `least` to `most`."""
    if not isinstance(value, int) or not least <= value <= most:
        end = "" if math.isinf(most) else f" and at most {most}"
        raise ValueError(
            f"`{name}` must be an integer of at least {least}{end}. Received: "
            f"{name}={value!r}."
        )


def _spread_stop_ids(stop_ids, num_prompts, vocab_size):
    """The stop ids of each prompt, of which all may have the same."""
    if not are_lists(stop_ids):
        return [check_stop_ids(stop_ids, vocab_size)] * num_prompts
    if len(stop_ids) != num_prompts:
        raise ValueError(
            "`stop_ids` must be token ids, or a list of these for each of the "
            f"{num_prompts} prompts. Received: {len(stop_ids)} lists."
        )
    return [check_stop_ids(ids, vocab_size) for ids in stop_ids]


def are_lists(stop_ids) -> bool:
    """Whether stop ids are given for each prompt."""
    is_list = isinstance(stop_ids, Sequence) and not isinstance(stop_ids, str)
    return is_list and any(isinstance(item, Iterable) for item in stop_ids)


def check_stop_ids(stop_ids, vocab_size: int) -> np.ndarray:
    """Stop ids, int32, padded with -1 to a size that seldom changes."""
    if isinstance(stop_ids, str) or not isinstance(stop_ids, Iterable):
        raise ValueError(
            f"`stop_ids` must be a list of token ids. Received: {stop_ids!r}."
        )
    stop_ids = list(stop_ids)
    if stop_ids:
        check_token_ids(stop_ids, vocab_size, name="stop_ids")
    room = -(-max(len(stop_ids), 1) // _STOP_IDS_ROOM) * _STOP_IDS_ROOM
    return np.array(stop_ids + [-1] * (room - len(stop_ids)), "int32")


def pad_prompts(
    prompts: list[list[int]], config: GPTConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Pad to a bucket of shapes.

    Args:
        prompts: Token ids of each row.
        config: The model's, for `context_length`.

    Returns:
        Token ids `(padded rows, padded length)` and lengths `(padded rows,)`, int32.
        Rows that only fill the bucket hold one token.
    """
    longest = max(1, *map(len, prompts))
    length = min(max(backend.bucket(longest), 16), config.context_length)
    token_ids = np.zeros((backend.bucket(len(prompts)), length), "int32")
    lengths = np.ones(len(token_ids), "int32")
    for row, prompt in enumerate(prompts):
        token_ids[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    return token_ids, lengths
