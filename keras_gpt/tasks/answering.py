"""Summaries and translations, of long texts in parts."""

import re
from collections.abc import Callable, Iterator, Sequence

from keras_gpt.generation.rows import check_count
from keras_gpt.tasks.prompts import encode_prompt, find_languages

# where a long text is cut, the best place first
_BOUNDARIES = (r"(?<=\n\n)", r"(?<=\n)", r"(?<=[.!?])(?=\s)", r"(?<=\s)", r"")


def summarize(
    lm, texts: str | Sequence[str], max_new_tokens: int = 64, **options
) -> str | list[str]:
    """Summarize texts; see `LanguageModel.summarize`."""
    _check_task(lm, "summarize")
    rows = [texts] if isinstance(texts, str) else list(texts)
    room = _room(lm, max_new_tokens)

    def build(text):
        return encode_prompt(lm, "summarize", text, {})

    pending = range(len(rows))
    while pending:
        parts = [
            _split(rows[i], lambda part: len(build(part)) <= room) for i in pending
        ]
        answers = _answer_parts(lm, build, parts, max_new_tokens, **options)
        again = []
        for i, found in zip(pending, answers, strict=True):
            joined = "\n".join(found)
            # what was too long for one prompt: the summary of its parts' summaries
            if len(found) > 1 and len(joined) < len(rows[i]):
                again.append(i)
            rows[i] = joined
        pending = again
    return rows[0] if isinstance(texts, str) else rows


def translate(
    lm,
    texts: str | Sequence[str],
    max_new_tokens: int = 128,
    *,
    source: str,
    target: str,
    **options,
) -> str | list[str]:
    """Translate texts; see `LanguageModel.translate`."""
    _check_task(lm, "translate")
    pairs = lm.tasks.get("translate", {}).get("languages")
    if pairs is not None and [source, target] not in pairs:
        known = ", ".join(f"{a} to {b}" for a, b in pairs)
        raise ValueError(
            f"The model wasn't tuned to translate {source} to {target}. It knows: "
            f"{known}."
        )
    languages = find_languages({"source_language": source, "target_language": target})
    rows = [texts] if isinstance(texts, str) else list(texts)
    room = _room(lm, max_new_tokens)

    def build(text):
        return encode_prompt(lm, "translate", text.strip(), languages)

    def fits(text):
        # a translation is about as long as its source
        short = len(lm.tokenizer.encode(text)) <= max_new_tokens * 2 // 3
        return short and len(build(text)) <= room

    parts = [_split(text, fits) for text in rows]
    answers = _answer_parts(lm, build, parts, max_new_tokens, **options)
    translations = []
    for split, found in zip(parts, answers, strict=True):
        # each part keeps the spaces and line ends around it
        pieces = []
        for part, answer in zip(split, found, strict=True):
            before, after = re.match(r"(\s*).*?(\s*)\Z", part, re.DOTALL).groups()
            pieces.append(before + answer + after if part.strip() else part)
        translations.append("".join(pieces))
    return translations[0] if isinstance(texts, str) else translations


def _answer_parts(
    lm,
    build: Callable[[str], list[int]],
    parts: list[list[str]],
    max_new_tokens: int,
    *,
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
    **controls,
) -> list[list[str]]:
    """For each text the answers to its parts, in batches of prompts of like length."""
    check_count("batch_size", batch_size)
    controls = {"temperature": 0.0, **controls}
    prompts = [build(part) for split in parts for part in split]
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        texts = lm.generate_from_ids(
            [prompts[i] for i in chosen], max_new_tokens, **controls
        )
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text.strip()
        if on_progress is not None:
            on_progress(len(chosen))
    remaining = iter(answers)
    return [[next(remaining) for _ in split] for split in parts]


def _split(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Cut a text into parts that fit; joined they are the text."""
    if fits(text):
        return [text]
    for boundary in _BOUNDARIES:
        units = [unit for unit in re.split(boundary, text) if unit]
        if len(units) > 1:
            return list(_join_while(units, fits))
    raise ValueError(
        "Not even one character fits beside the instruction and the answer. Lower "
        "max_new_tokens."
    )


def _join_while(units: list[str], fits: Callable[[str], bool]) -> Iterator[str]:
    """Join neighbours as long as they fit; cut those that don't alone."""
    part = ""
    for unit in units:
        if part and fits(part + unit):
            part += unit
            continue
        if part:
            yield part
        if fits(unit):
            part = unit
        else:
            *whole, part = _split(unit, fits)
            yield from whole
    if part:
        yield part


def _check_task(lm, name):
    if lm.chat_template is None and name not in lm.tasks:
        raise ValueError(
            f"The model can't {name}: it was neither tuned for it nor to follow "
            "instructions. Tune it with `keras-gpt finetune`."
        )


def _room(lm, max_new_tokens):
    """Most ids of a prompt."""
    room = lm.model.config.context_length - max_new_tokens
    if max_new_tokens < 1 or room < 1:
        raise ValueError(
            "`max_new_tokens` must be at least 1 and below the context length. "
            f"Received: max_new_tokens={max_new_tokens}, "
            f"context_length={lm.model.config.context_length}."
        )
    return room
