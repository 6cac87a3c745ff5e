"""Examples of tasks as token ids, of which those of the answer are to be learned."""

import itertools
from pathlib import Path
from typing import Any

from keras_gpt.data import Example, read_records
from keras_gpt.tasks.prompts import (
    TASKS,
    ask,
    encode_plain,
    find_languages,
    find_task,
)
from keras_gpt.tokenizers import encode_answers, leave_out_oldest


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
    languages = find_languages(record) if name == "translate" else {}

    def build(question):
        if lm.chat_template is not None:
            messages = ask(lm, name, question, languages)
            messages.append({"role": "assistant", "content": answer})
            return encode_answers(lm.chat_template, lm.tokenizer, messages, lm.stop_ids)
        prompt = encode_plain(lm, name, question, languages)
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
