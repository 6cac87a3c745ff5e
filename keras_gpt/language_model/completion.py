"""From prompts to new text: at once, or piece by piece."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from keras_gpt.generation import TextAssembler, start
from keras_gpt.generation.form import check_whole
from keras_gpt.language_model.forms import take_form
from keras_gpt.tokenizers import encode_chat

_STEPS_BETWEEN_LOOKS = 16  # tokens decoded at once while stop strings are watched for


@dataclass(frozen=True)
class Completion:
    """What a model added to a prompt.

    Attributes:
        text: The new text alone.
        ids: The new token ids, which may go beyond a stop string.
        log_probs: Log-probability in nats of each id under the model.
        finish_reason: `"stop"` (a stop id or string) or `"length"`.
    """

    text: str
    ids: list[int]
    log_probs: list[float]
    finish_reason: str


def encode_prompts(tokenizer, prompts: str | Sequence[str]) -> list[list[int]]:
    """The token ids of one prompt or several, each with what begins a text.

    Raises:
        TypeError: A prompt isn't a text.
        ValueError: A prompt is empty, and nothing begins a text.
    """
    begin = tokenizer.start_ids
    end = tokenizer.end_of_text_id
    empty = [end] if not begin and end is not None else begin
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(
                "`prompts` must be a text or a list of texts. Received: "
                f"{type(prompt).__name__}. For token ids there is "
                "keras_gpt.generate(lm.model, ids)."
            )
    rows = tokenizer.encode_batch(prompts)
    for row, ids in enumerate(rows):
        if not ids and not empty:
            raise ValueError(
                f"Prompt {row} is empty, and the tokenizer has no end-of-text "
                "token to start from. Give at least one character."
            )
    return [begin + ids if ids else empty for ids in rows]


def encode_messages(lm, messages, max_new_tokens: int, **variables: Any) -> list[int]:
    """The token ids of a conversation, with room for an answer of so many.

    `encode_chat` says what it leaves out and raises.
    """
    room = find_room(lm, max_new_tokens)
    return encode_chat(lm.chat_template, lm.tokenizer, messages, room, **variables)


def find_room(lm, max_new_tokens: int) -> int:
    """Most tokens before an answer of so many. A short context is shared by both."""
    context_length = lm.model.config.context_length
    return context_length - min(max_new_tokens, context_length // 2)


def complete(lm, ids, *, stop=(), **controls: Any) -> list[Completion]:
    """Continue prompts that are token ids.

    Args:
        lm: A `LanguageModel`.
        ids: The prompts.
        stop: Strings that end a text.
        **controls: As of `keras_gpt.generate`; what isn't given is the model's own;
            and `schema`, `regex` or `choices`.

    Raises:
        ValueError: A control is out of its range, or an answer isn't of its form.
    """
    run, texts = _begin(lm, ids, stop, controls)
    while not run.finished:
        _assemble(run, texts, run.advance(_STEPS_BETWEEN_LOOKS if stop else None))
    for row, text in enumerate(texts):
        text.finish()
        if text.stopped:
            run.stop(row)
    for number, row in enumerate(run.rows):
        check_whole(row, number)
    return [
        Completion(text.text, *fields)
        for text, *fields in zip(
            texts, run.ids, run.log_probs, run.finish_reasons, strict=True
        )
    ]


def stream(lm, ids, *, stop=(), slots=None, **controls: Any) -> Iterator[str]:
    """Continue one prompt that is token ids; `complete` has the arguments.

    Args:
        lm: A `LanguageModel`.
        ids: The prompt.
        stop: Strings that end the text.
        slots: Continue it in these `Slots` of the model. Defaults to `None`.
        **controls: As of `complete`.

    Yields:
        Pieces of text as soon as they are certain.
    """
    text = TextAssembler(lm.tokenizer, _check_stop(stop))
    for new_ids in _stream_ids(lm, ids, slots, _prepare(lm, stop, controls)):
        piece = text.add(new_ids)
        if piece:
            yield piece
        if text.stopped:
            return
    piece = text.finish()
    if piece:
        yield piece


def _stream_ids(lm, ids, slots, controls):
    """The new ids, as they come."""
    if slots is None:
        run = start(lm.model, [ids], **controls)
        while not run.finished:
            yield run.advance(1)[0]
        check_whole(run.rows[0], 0)
        return
    row = slots.add(ids, **controls)
    try:
        while row.finish_reason is None:
            known = len(row.ids)
            slots.advance(1)
            yield row.ids[known:]
        check_whole(row, 0)
    finally:  # the text may be read no further
        slots.stop(row)


def _begin(lm, ids, stop, controls):
    """The run, and the text of each row as it grows."""
    stop = _check_stop(stop)
    run = start(lm.model, ids, **_prepare(lm, stop, controls))
    return run, [TextAssembler(lm.tokenizer, stop) for _ in run.rows]


def _check_stop(stop):
    stop = [stop] if isinstance(stop, str) else list(stop)
    if "" in stop or not all(isinstance(item, str) for item in stop):
        raise ValueError(f"`stop` must be non-empty strings. Received: {stop!r}.")
    return stop


def _prepare(lm, stop, controls):
    """The controls, and what the model takes where a caller gave none."""
    if controls.get("stop_ids") is None:
        controls["stop_ids"] = _find_stop_ids(lm, controls.get("adapter"))
    form = take_form(lm, stop, controls)
    if form is not None:
        controls["form"] = form
    return lm.generation_defaults | controls


def _find_stop_ids(lm, adapter):
    """The ids that end a text by an adapter, or those of each of several."""
    if adapter is None or isinstance(adapter, str):
        return lm.adapters.get(adapter, {}).get("stop_ids", lm.stop_ids)
    return [_find_stop_ids(lm, name) for name in adapter]


def _assemble(run, texts, new_ids):
    """Let texts grow by new ids; returns the certain pieces."""
    pieces = []
    for row, (text, ids) in enumerate(zip(texts, new_ids, strict=True)):
        pieces.append(text.add(ids))
        if text.stopped:
            run.stop(row)
    return pieces
