"""Tasks: how a model is asked for a summary or a translation."""

from dataclasses import dataclass
from typing import Any

from keras_gpt.config import suggest
from keras_gpt.tokenizers import encode_chat

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


def encode_prompt(lm, name, question, languages):
    """Ids after which the model writes its answer."""
    if lm.chat_template is None:
        return encode_plain(lm, name, question, languages)
    messages = ask(lm, name, question, languages)
    return encode_chat(lm.chat_template, lm.tokenizer, messages, _UNLIMITED)


def encode_plain(lm, name, question, languages):
    """Ids of the prompt of a model that has no chat template."""
    text = TASKS[name].plain.format(question=question, **languages)
    return [*lm.tokenizer.start_ids, *lm.tokenizer.encode(text)]


def ask(lm, name, question, languages):
    """The message of the user."""
    noted = lm.tasks.get(name, {}).get("instruction")
    instruction = TASKS[name].instruction if noted is None else noted
    for field, language in languages.items():
        instruction = instruction.replace(f"{{{field}}}", language)
    content = f"{instruction}\n\n{question}" if instruction else question
    return [{"role": "user", "content": content}]


def find_languages(record):
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
