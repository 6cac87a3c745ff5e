"""How well a model does a task, from a file of examples."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keras_gpt import tasks
from keras_gpt.evaluation.metrics import (
    bootstrap_interval,
    score_summaries,
    score_translations,
)
from keras_gpt.generation import score


@dataclass(frozen=True)
class TaskEvaluation:
    """How well a model did.

    Attributes:
        task: `"summarize"`, `"translate"`, `"complete"` or `"chat"`.
        num_examples: How many examples there were.
        loss: Mean negative log-probability of an answer's token, in nats.
        perplexity: `exp(loss)`.
        bits_per_byte: Bits that the model needs for each byte of the answers, which
            compares models with different tokenizers.
        scores: By metric its value, from 0 to 100; none for other tasks than
            summaries and translations.
        intervals: By metric the ends of the 95% bootstrap interval of the mean over
            examples, where the value is that mean.
        signatures: By metric how it was computed.
        predictions: What the model wrote.
    """

    task: str
    num_examples: int
    loss: float
    perplexity: float
    bits_per_byte: float
    scores: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    predictions: list[str] = field(default_factory=list)


def evaluate_task(
    lm,
    path: str | Path,
    *,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
    **controls,
) -> TaskEvaluation:
    """Measure how likely a model finds the answers, and how good its own are.

    Args:
        lm: A `LanguageModel`.
        path: JSON Lines or Parquet, with the fields of one task (`keras_gpt.tasks`).
        limit: Take only so many of the first examples.
        max_new_tokens: Most tokens of an answer. Defaults to those of
            `LanguageModel.summarize` and `translate`.
        batch_size: Texts at once.
        on_progress: Called with the number of prompts that were answered.
        **controls: As of `LanguageModel.summarize` and `translate`.

    Returns:
        A `TaskEvaluation`: summaries are compared by ROUGE, translations by BLEU and
        chrF.

    Raises:
        ValueError: A record is bad, or they are of several tasks or languages.
    """
    context_length = lm.model.config.context_length
    examples, about = tasks.read_examples(lm, path, context_length, limit=limit)
    records = about["records"]
    name = _only_task(about["tasks"], path)
    answers = _evaluate_answers(lm, examples)
    controls["batch_size"] = batch_size
    controls["on_progress"] = on_progress
    controls["max_new_tokens"] = max_new_tokens
    if name == "summarize":
        predictions = lm.summarize([r["text"] for r in records], **controls)
        result = score_summaries(predictions, [r["summary"] for r in records])
    elif name == "translate":
        [[source, target]] = about["tasks"][name]["languages"]
        predictions = lm.translate(
            [r["source"] for r in records], source=source, target=target, **controls
        )
        references = [r["target"] for r in records]
        result = score_translations(predictions, references, target=target)
    else:
        return TaskEvaluation(name, len(examples), **answers)
    intervals = {}
    for metric, values in result.by_text.items():
        interval = bootstrap_interval(values)
        # BLEU and chrF of a corpus are no means
        if math.isclose(interval.mean, result.scores[metric]):
            intervals[metric] = (interval.low, interval.high)
    return TaskEvaluation(
        name,
        len(examples),
        **answers,
        scores=result.scores,
        intervals=intervals,
        signatures=result.signatures,
        predictions=predictions,
    )


def _only_task(found: dict[str, Any], path) -> str:
    languages = found.get("translate", {}).get("languages", [[]])
    if len(found) > 1 or len(languages) > 1:
        raise ValueError(
            f"{path} must be of one task and one pair of languages. Received: "
            f"{', '.join(found)}; {languages}. Make a file of each."
        )
    [name] = found
    return name


def _evaluate_answers(lm, examples) -> dict[str, float]:
    """Loss, perplexity and bits per byte of the answers' tokens."""
    loss, num_tokens, num_bytes = 0.0, 0, 0
    rows = [example.token_ids for example in examples]
    scores = score(lm.model, rows, adapter=lm.adapter)
    for example, log_probs in zip(examples, scores, strict=True):
        is_answer = np.array(example.is_answer[1:])
        loss -= float(log_probs[is_answer].sum(dtype="float64"))
        num_tokens += int(is_answer.sum())
        ids = np.array(example.token_ids[1:])[is_answer]
        num_bytes += len(lm.tokenizer.decode_bytes(ids, skip_special_tokens=True))
    return {
        "loss": loss / num_tokens,
        "perplexity": math.exp(loss / num_tokens),
        "bits_per_byte": loss / math.log(2) / max(num_bytes, 1),
    }
