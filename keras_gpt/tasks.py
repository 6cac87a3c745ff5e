"""Tasks: how a model is asked for a summary or a translation, and taught to give it."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_gpt.config import suggest
from keras_gpt.data import Example, read_records
from keras_gpt.tokenizers import encode_answers, encode_chat, leave_out_oldest

LANGUAGES = {
    "ar": "Arabic",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "zh": "Chinese",
}
_UNLIMITED = 1 << 30
# where a long text is cut, the best place first
_BOUNDARIES = (r"(?<=\n\n)", r"(?<=\n)", r"(?<=[.!?])(?=\s)", r"(?<=\s)", r"")


@dataclass(frozen=True)
class Task:
    """How a kind of record becomes a prompt and an answer.

    Attributes:
        question: The record's field with what the model is given.
        answer: The field with what it shall write.
        instruction: What a chat model is told, before the question.
        plain: The prompt of other models, in which `{question}` stands for it.
        keeps_end: Whether of a question that is too long the end is kept, which the
            answer continues, or else its beginning.
    """

    question: str
    answer: str
    instruction: str = ""
    plain: str = "{question}"
    keeps_end: bool = False


TASKS = {
    "complete": Task("prompt", "completion", keeps_end=True),
    "summarize": Task(
        "text",
        "summary",
        instruction="Summarize the following text in one sentence.",
        plain="{question}\n\nSummary:",
    ),
    "translate": Task(
        "source",
        "target",
        instruction="Translate from {source_language} to {target_language}.",
        plain="{source_language}: {question}\n{target_language}:",
    ),
}


def find_task(record: dict[str, Any]) -> str:
    """Which task a record is an example of: `"chat"`, or a name in `TASKS`.

    Raises:
        ValueError: It has the fields of none.
    """
    if "messages" in record:
        return "chat"
    if "chosen" in record or "rejected" in record:
        raise ValueError(
            "a pair of answers is for `keras-gpt finetune` alone; not all records are"
        )
    for name, task in TASKS.items():
        if task.question in record and task.answer in record:
            return name
    for task in TASKS.values():
        if task.question in record or task.answer in record:
            missing = task.answer if task.question in record else task.question
            raise ValueError(f"the field {missing!r} is missing")
    pairs = ", ".join(f"{task.question}/{task.answer}" for task in TASKS.values())
    raise ValueError(
        f"a record needs the fields {pairs} or messages. Received: "
        f"{', '.join(map(str, record)) or 'none'}"
    )


def encode_record(
    lm, record: dict[str, Any], most: int, *, shorten: bool = True
) -> tuple[Example, bool]:
    """Turn a record into token ids, of which those of the answer are marked.

    Args:
        lm: The `LanguageModel` that shall learn it. With a chat template the prompt
            is a message, and without one a plain text.
        record: `prompt` and `completion`; `text` and `summary`; `source`, `target`,
            `source_language` and `target_language`; or `messages`.
        most: Most ids.
        shorten: Whether a question that is too long is shortened, and of a
            conversation the oldest messages left out. The answer never is.

    Returns:
        The example, and whether it was shortened.

    Raises:
        ValueError: A field is missing, empty or no text, or it is too long.
    """
    name = find_task(record)
    if name == "chat":
        return _encode_conversation(lm, record["messages"], most, shorten)
    task = TASKS[name]
    question, answer = _text(record, task.question), _text(record, task.answer)
    if not answer.strip():
        raise ValueError(
            f"the field {task.answer!r} is empty: there's nothing to learn"
        )
    languages = _languages(record) if name == "translate" else {}

    def build(question):
        if lm.chat_template is not None:
            messages = _ask(lm, name, question, languages)
            messages.append({"role": "assistant", "content": answer})
            return encode_answers(lm.chat_template, lm.tokenizer, messages, lm.stop_ids)
        prompt = _encode_plain(lm, name, question, languages)
        # what follows a prompt that ends in a colon begins with a space
        start = "" if name == "complete" else " "
        answer_ids = [*lm.tokenizer.encode(start + answer), _end_id(lm)]
        ids = prompt + answer_ids
        return ids, [False] * len(prompt) + [True] * len(answer_ids)

    shortened, (ids, is_answer) = _fit(lm, build, question, most, task.keeps_end)
    if shortened and not shorten:
        raise ValueError(f"the example is too long: there is room for {most} tokens")
    return Example(ids, is_answer), shortened


def encode_preference(lm, record: dict[str, Any], most: int) -> tuple[Example, Example]:
    """Turn two answers to a prompt into token ids.

    Args:
        lm: As for `encode_record`.
        record: `prompt`, `chosen` and `rejected`.
        most: Most ids.

    Returns:
        The chosen and the rejected example.

    Raises:
        ValueError: A field is missing, empty or no text, or it is too long.
    """
    for field in ("prompt", "chosen", "rejected"):
        if field not in record:
            raise ValueError(f"the field {field!r} is missing")
        if not _text(record, field).strip():
            raise ValueError(f"the field {field!r} is empty")
    examples = [
        encode_record(
            lm,
            {"prompt": record["prompt"], "completion": record[field]},
            most,
            shorten=False,
        )
        for field in ("chosen", "rejected")
    ]
    return tuple(example for example, _ in examples)


def read_preferences(lm, path: str | Path, most: int) -> list[tuple[Example, Example]]:
    """Read and encode all pairs of answers of a file.

    Args:
        lm: As for `encode_preference`.
        path: JSON Lines or Parquet.
        most: Most ids of an example.

    Raises:
        ValueError: A record is bad: the message names its line.
    """
    encoded = _encode_each(path, lambda record: encode_preference(lm, record, most))
    return [pair for _, pair in encoded]


def _encode_each(path, encode, limit=None):
    """Each record of a file with what `encode` makes of it; errors name its place."""
    is_empty = True
    for place, record in itertools.islice(read_records(path), limit):
        try:
            encoded = encode(record)
        except ValueError as error:
            raise ValueError(f"{place}: {error}.") from error
        is_empty = False
        yield record, encoded
    if is_empty:
        raise ValueError(f"{path} has no records.")


def read_examples(
    lm,
    path: str | Path,
    most: int,
    *,
    shorten: bool = True,
    limit: int | None = None,
) -> tuple[list[Example], dict[str, Any]]:
    """Read and encode all records of a file.

    Args:
        lm: As for `encode_record`, as are the others.
        path: JSON Lines or Parquet.
        most: Most ids of an example.
        shorten: Whether to shorten what is longer.
        limit: Take only so many of the first.

    Returns:
        The examples; and what they are: their `records`, `tasks`, as
        `LanguageModel.tasks` notes them, and `num_shortened`.

    Raises:
        ValueError: A record is bad: the message names its line.
    """
    records, examples, tasks, num_shortened = [], [], {}, 0

    def encode(record):
        return encode_record(lm, record, most, shorten=shorten)

    for record, (example, shortened) in _encode_each(path, encode, limit):
        records.append(record)
        examples.append(example)
        num_shortened += shortened
        name = find_task(record)
        noted = tasks.setdefault(name, {})
        if name == "translate":
            pair = [record["source_language"], record["target_language"]]
            pairs = noted.setdefault("languages", [])
            if pair not in pairs:
                pairs.append(pair)
    for name, noted in tasks.items():
        default = TASKS[name].instruction if name in TASKS else ""
        instruction = lm.tasks.get(name, {}).get("instruction", default)
        if instruction and lm.chat_template is not None:
            noted["instruction"] = instruction
    about = {"records": records, "tasks": tasks, "num_shortened": num_shortened}
    return examples, about


def summarize(
    lm,
    texts: str | Sequence[str],
    max_new_tokens: int = 64,
    *,
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
    **controls,
) -> str | list[str]:
    """Summarize texts; see `LanguageModel.summarize`."""
    _check_task(lm, "summarize")
    rows = [texts] if isinstance(texts, str) else list(texts)
    room = _room(lm, max_new_tokens)

    def build(text):
        return _encode_prompt(lm, "summarize", text, {})

    pending = range(len(rows))
    while pending:
        parts = [
            _split(rows[i], lambda part: len(build(part)) <= room) for i in pending
        ]
        answers = _answer_parts(
            lm, build, parts, max_new_tokens, batch_size, on_progress, controls
        )
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
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
    **controls,
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
    languages = _languages({"source_language": source, "target_language": target})
    rows = [texts] if isinstance(texts, str) else list(texts)
    room = _room(lm, max_new_tokens)

    def build(text):
        return _encode_prompt(lm, "translate", text.strip(), languages)

    def fits(text):
        # a translation is about as long as its source
        short = len(lm.tokenizer.encode(text)) <= max_new_tokens * 2 // 3
        return short and len(build(text)) <= room

    parts = [_split(text, fits) for text in rows]
    answers = _answer_parts(
        lm, build, parts, max_new_tokens, batch_size, on_progress, controls
    )
    translations = []
    for split, found in zip(parts, answers, strict=True):
        # each part keeps the spaces and line ends around it
        pieces = []
        for part, answer in zip(split, found, strict=True):
            before, after = re.match(r"(\s*).*?(\s*)\Z", part, re.DOTALL).groups()
            pieces.append(before + answer + after if part.strip() else part)
        translations.append("".join(pieces))
    return translations[0] if isinstance(texts, str) else translations


def _answer_parts(lm, build, parts, *options):
    """For each text the answers to its parts."""
    prompts = [build(part) for split in parts for part in split]
    answers = iter(_answer(lm, prompts, *options))
    return [[next(answers) for _ in split] for split in parts]


def _answer(lm, prompts, max_new_tokens, batch_size, on_progress, controls):
    """Answers in batches of prompts of like length."""
    controls = {"temperature": 0.0, **controls}
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
    return answers


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


def _fit(lm, build, question, most, keeps_end):
    """Build with the longest part of the question for which the result fits."""
    built = build(question)
    shortened = False
    ids = lm.tokenizer.encode(question)
    keep = len(ids)
    while len(built[0]) > most:
        keep -= len(built[0]) - most
        if keep <= 0:
            needed = len(build("")[0])
            raise ValueError(
                f"the answer and what must stand around it take {needed} tokens; "
                f"there is room for {most}"
            )
        kept = ids[-keep:] if keeps_end else ids[:keep]
        # a character that was cut in two is left out
        question = lm.tokenizer.decode(kept, skip_special_tokens=True).strip("\ufffd")
        built, shortened = build(question), True
    return shortened, built


def _encode_conversation(lm, messages, most, shorten):
    if lm.chat_template is None:
        raise ValueError(
            "the record has messages, but the model has no chat template. Give "
            "prompt and completion, or LanguageModel a `chat_template`"
        )
    shortened = False
    while True:
        ids, is_answer = encode_answers(
            lm.chat_template, lm.tokenizer, messages, lm.stop_ids
        )
        if len(ids) <= most:
            return Example(ids, is_answer), shortened
        shorter = leave_out_oldest(messages)
        if shorter is None or not shorten:
            raise ValueError(
                f"the conversation is too long: {len(ids)} tokens; there is room for "
                f"{most}"
            )
        messages, shortened = shorter, True


def _encode_prompt(lm, name, question, languages):
    """Ids after which the model writes its answer."""
    if lm.chat_template is None:
        return _encode_plain(lm, name, question, languages)
    messages = _ask(lm, name, question, languages)
    return encode_chat(lm.chat_template, lm.tokenizer, messages, _UNLIMITED)


def _encode_plain(lm, name, question, languages):
    text = TASKS[name].plain.format(question=question, **languages)
    return [*lm.tokenizer.start_ids, *lm.tokenizer.encode(text)]


def _ask(lm, name, question, languages):
    """The message of the user."""
    noted = lm.tasks.get(name, {}).get("instruction")
    instruction = TASKS[name].instruction if noted is None else noted
    for field, language in languages.items():
        instruction = instruction.replace(f"{{{field}}}", language)
    content = f"{instruction}\n\n{question}" if instruction else question
    return [{"role": "user", "content": content}]


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


def _end_id(lm):
    if not lm.stop_ids:
        raise ValueError(
            "the model has no id that ends a text. Train its tokenizer with "
            "special_tokens=['<|endoftext|>']"
        )
    return lm.stop_ids[0]


def _text(record, field):
    if not isinstance(record[field], str):
        raise ValueError(
            f"the field {field!r} must be a text. Received: {record[field]!r}"
        )
    return record[field]


def _languages(record):
    """The languages' names, for the prompt."""
    names = {}
    for field in ("source_language", "target_language"):
        if field not in record:
            raise ValueError(f"the field {field!r} is missing")
        code = record[field]
        if code not in LANGUAGES:
            raise ValueError(suggest("language", code, LANGUAGES))
        names[field] = LANGUAGES[code]
    return names
