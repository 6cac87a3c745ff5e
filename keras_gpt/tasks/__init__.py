"""Tasks: how a model is asked for a summary or a translation, and taught to give it."""

from keras_gpt.tasks.answering import (
    answer,
    stream_answer,
    summarize,
    translate,
)
from keras_gpt.tasks.examples import (
    encode_preference,
    encode_record,
    read_examples,
    read_preferences,
)
from keras_gpt.tasks.jobs import answer_records
from keras_gpt.tasks.prompts import LANGUAGES, TASKS, Task, find_task

__all__ = [
    "LANGUAGES",
    "TASKS",
    "Task",
    "answer",
    "answer_records",
    "encode_preference",
    "encode_record",
    "find_task",
    "read_examples",
    "read_preferences",
    "stream_answer",
    "summarize",
    "translate",
]
