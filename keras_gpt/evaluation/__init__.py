"""How good a model's texts are: ROUGE, BLEU, chrF, and the tasks of lm-eval."""

from keras_gpt.evaluation.harness import lm_eval_model
from keras_gpt.evaluation.metrics import (
    Comparison,
    Interval,
    MetricScores,
    bootstrap_interval,
    compare_translations,
    score_summaries,
    score_translations,
)
from keras_gpt.evaluation.task import TaskEvaluation, evaluate_task

__all__ = [
    "Comparison",
    "Interval",
    "MetricScores",
    "TaskEvaluation",
    "bootstrap_interval",
    "compare_translations",
    "evaluate_task",
    "lm_eval_model",
    "score_summaries",
    "score_translations",
]
