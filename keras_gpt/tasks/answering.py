"""Answers of a model in the form that it was tuned for; long texts in parts."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from weakref import WeakKeyDictionary

from keras_gpt.controls import spread_control
from keras_gpt.generation.rows import check_count
from keras_gpt.language_model.completion import encode_messages, encode_prompts
from keras_gpt.tasks.cutting import cut
from keras_gpt.tasks.prompts import ask, encode_prompt, find_languages

# of an answer, unless a caller says otherwise
MOST_NEW_TOKENS = {"generate": 64, "chat": 256, "summarize": 64, "translate": 128}
# by model the tasks that it was said not to be tuned for
_WARNED = WeakKeyDictionary()


def answer(
    lm, prompts: str | Sequence[str], max_new_tokens: int | None = None, **options
) -> str | list[str]:
    """Answer prompts in the form of `lm.task`; see `LanguageModel.answer`."""
    if lm.task == "summarize":
        return lm.summarize(prompts, max_new_tokens, **options)
    if lm.task == "translate":
        return lm.translate(prompts, max_new_tokens, **_choose_languages(lm, options))
    rows = [prompts] if isinstance(prompts, str) else list(prompts)
    most = MOST_NEW_TOKENS[lm.task] if max_new_tokens is None else max_new_tokens
    if lm.task == "chat":
        ids = [encode_messages(lm, ask(lm, "complete", row, {}), most) for row in rows]
    else:
        ids = encode_prompts(lm.tokenizer, rows)
    texts = _generate_each(lm, ids, most, **options)
    return texts[0] if isinstance(prompts, str) else texts


def stream_answer(
    lm, prompt: str, max_new_tokens: int | None = None, **options
) -> Iterator[str]:
    """Answer a prompt as `LanguageModel.answer` does, giving text as it comes.

    Args:
        lm: A `LanguageModel`.
        prompt: One prompt.
        max_new_tokens: As of `LanguageModel.answer`, as are the others.
        **options: As of `LanguageModel.answer`, but for beams.

    Yields:
        Pieces that together are the answer; a summary or translation in one.
    """
    most = MOST_NEW_TOKENS[lm.task] if max_new_tokens is None else max_new_tokens
    if lm.task == "chat":
        yield from lm.stream_chat(ask(lm, "complete", prompt, {}), most, **options)
    elif lm.task == "generate":
        yield from lm.stream(prompt, most, **options)
    else:
        yield answer(lm, prompt, max_new_tokens, **options)


def summarize(
    lm, texts: str | Sequence[str], max_new_tokens: int | None = None, **options
) -> str | list[str]:
    """Summarize texts; see `LanguageModel.summarize`."""
    _check_task(lm, "summarize")
    rows = [texts] if isinstance(texts, str) else list(texts)
    max_new_tokens, most = share_context(lm, "summarize", max_new_tokens, {})
    pending = range(len(rows))
    while pending:
        parts = [cut(rows[i], _counter(lm), most) for i in pending]
        prompts = [
            encode_prompt(lm, "summarize", part, {})
            for split in parts
            for part in split
        ]
        found = iter(_answer_each(lm, prompts, max_new_tokens, **options))
        again = []
        for i, split in zip(pending, parts, strict=True):
            joined = "\n".join(next(found) for _ in split)
            # what was too long for one prompt: the summary of its parts' summaries
            if len(split) > 1 and len(joined) < len(rows[i]):
                again.append(i)
            rows[i] = joined
        pending = again
    return rows[0] if isinstance(texts, str) else rows


def translate(
    lm,
    texts: str | Sequence[str],
    max_new_tokens: int | None = None,
    *,
    source: str,
    target: str,
    **options,
) -> str | list[str]:
    """Translate texts; see `LanguageModel.translate`."""
    pairs = lm.tasks.get("translate", {}).get("languages")
    if pairs is not None and [source, target] not in pairs:
        raise ValueError(
            f"The model wasn't tuned to translate {source} to {target}. It knows: "
            f"{_describe_pairs(pairs)}."
        )
    languages = find_languages({"source_language": source, "target_language": target})
    _check_task(lm, "translate")
    rows = [texts] if isinstance(texts, str) else list(texts)
    max_new_tokens, most = share_context(lm, "translate", max_new_tokens, languages)
    parts = [cut(text, _counter(lm), most) for text in rows]
    prompts = [
        encode_prompt(lm, "translate", part.strip(), languages)
        for split in parts
        for part in split
    ]
    found = iter(_answer_each(lm, prompts, max_new_tokens, **options))
    translations = []
    for split in parts:
        # each part keeps the spaces and line ends around it
        pieces = []
        for part, answer in zip(split, found, strict=False):
            before, after = re.match(r"(\s*).*?(\s*)\Z", part, re.DOTALL).groups()
            pieces.append(before + answer + after if part.strip() else part)
        translations.append("".join(pieces))
    return translations[0] if isinstance(texts, str) else translations


def _answer_each(lm, prompts, max_new_tokens, **options):
    """The answer to each prompt of token ids, greedy unless asked otherwise."""
    options = {"temperature": 0.0, **options}
    texts = _generate_each(lm, prompts, max_new_tokens, **options)
    return [text.strip() for text in texts]


def _generate_each(
    lm,
    prompts: list[list[int]],
    max_new_tokens: int,
    *,
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
    seed: int | Sequence[int] = 0,
    **controls,
) -> list[str]:
    """What follows each prompt of token ids, in batches of those of like length."""
    check_count("batch_size", batch_size)
    if controls.get("num_return_sequences", 1) != 1:
        raise ValueError(
            "`num_return_sequences` must be 1: a prompt has one answer. Received: "
            f"{controls['num_return_sequences']!r}. Use `generate` or `complete`."
        )
    seeds = spread_control("seed", seed, len(prompts))
    if not hasattr(seed, "__len__"):  # counted up from one
        seeds = [seed + i for i, seed in enumerate(seeds)]
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        found = lm.generate_from_ids(
            [prompts[i] for i in chosen],
            max_new_tokens,
            seed=[seeds[i] for i in chosen],
            **controls,
        )
        for i, text in zip(chosen, found, strict=True):
            texts[i] = text
        if on_progress is not None:
            on_progress(len(chosen))
    return texts


def _counter(lm) -> Callable[[list[str]], list[int]]:
    """What counts the tokens of texts."""
    return lambda texts: [len(ids) for ids in lm.tokenizer.encode_batch(texts)]


def _choose_languages(lm, options):
    """The options with the pair of languages, which may be the only one."""
    pairs = lm.tasks["translate"].get("languages", [])
    if not {"source", "target"} & options.keys() and len(pairs) == 1:
        [[source, target]] = pairs
        return {"source": source, "target": target, **options}
    if not {"source", "target"} <= options.keys():
        raise ValueError(
            f"The model translates {_describe_pairs(pairs)}: give `source` and "
            "`target`, as `keras-gpt translate` does."
        )
    return options


def _describe_pairs(pairs):
    return ", ".join(f"{source} to {target}" for source, target in pairs)


def _check_task(lm, name):
    """Raise where a model can't do a task; say once where it wasn't tuned for it."""
    if name in lm.tasks:
        return
    if lm.chat_template is None:
        raise ValueError(
            f"The model can't {name}: it was neither tuned for it nor to follow "
            "instructions. Tune it with `keras-gpt finetune`."
        )
    warned = _WARNED.setdefault(lm, set())
    if name not in warned:
        warned.add(name)
        warnings.warn(
            f"The model was never tuned to {name}, and is asked as any chat model is: "
            "if what it writes is poor, tune it with `keras-gpt finetune`.",
            stacklevel=4,  # who called the method
        )


def share_context(
    lm, name: str, max_new_tokens: int | None, languages: dict[str, str]
) -> tuple[int, int]:
    """Most tokens of an answer, by default half of a short context, and of a part.

    Args:
        lm: A `LanguageModel`.
        name: `"summarize"` or `"translate"`.
        max_new_tokens: What the caller gave.
        languages: As of `find_languages`.

    Raises:
        ValueError: `max_new_tokens` leaves no room for a prompt.
    """
    context_length = lm.model.config.context_length
    if max_new_tokens is None:
        max_new_tokens = min(MOST_NEW_TOKENS[name], context_length // 2)
    room = context_length - max_new_tokens
    if max_new_tokens < 1 or room < 1:
        raise ValueError(
            "`max_new_tokens` must be at least 1 and below the context length. "
            f"Received: max_new_tokens={max_new_tokens}, "
            f"context_length={context_length}."
        )
    room -= len(encode_prompt(lm, name, "", languages))
    if name == "translate":  # which is about as long as its source
        room = min(room, max_new_tokens * 2 // 3)
    return max_new_tokens, room
