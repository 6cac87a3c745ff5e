"""ROUGE, BLEU and chrF of texts against references, and how certain they are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from keras_gpt.installed import require

_ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class MetricScores:
    """How much texts have in common with their references, from 0 to 100.

    Attributes:
        scores: By the metric's name, the score of all texts together.
        by_text: By the metric's name, each text's own score, float64 `(texts,)`.
        signatures: By the metric's name, how it was computed: publish it too.
    """

    scores: dict[str, float]
    by_text: dict[str, np.ndarray]
    signatures: dict[str, str]


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        mean: The mean of the values.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two systems by one metric.

    Attributes:
        first: The first system's score, from 0 to 100.
        second: The second system's score.
        p_value: How probable so large a difference is if the systems are equally good.
        signature: How it was computed: publish it too.
    """

    first: float
    second: float
    p_value: float
    signature: str


def score_summaries(
    predictions: Sequence[str], references: Sequence[str]
) -> MetricScores:
    """Compare summaries with references by ROUGE-1, ROUGE-2 and ROUGE-L.

    Args:
        predictions: The summaries.
        references: For each of them the text that it should be.

    Returns:
        F1 as `"rouge1"`, `"rouge2"` and `"rougeL"`: of each text, and their means.
        Words are stemmed as in English; of other alphabets the tokenizer sees nothing.

    Raises:
        ImportError: The extra `metrics` isn't installed.
        ValueError: There are no texts, or not as many of one as of the other.

    References:
        - [ROUGE: A Package for Automatic Evaluation of Summaries](https://aclanthology.org/W04-1013/)

    Example:

    >>> from keras_gpt.evaluation import score_summaries
    >>> result = score_summaries(["the cat sat"], ["the cats sat down"])
    >>> round(result.scores["rouge1"], 1)
    85.7
    """
    predictions, references = _check_texts(
        predictions=predictions, references=references
    )
    require("metrics", "ROUGE", "rouge_score")
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(_ROUGE, use_stemmer=True)
    results = [
        scorer.score(reference, prediction)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    by_text = {
        name: np.array([100 * result[name].fmeasure for result in results])
        for name in _ROUGE
    }
    signature = f"stem:porter|tok:default|version:{metadata.version('rouge-score')}"
    return MetricScores(
        scores={name: float(values.mean()) for name, values in by_text.items()},
        by_text=by_text,
        signatures=dict.fromkeys(_ROUGE, signature),
    )


def score_translations(
    predictions: Sequence[str], references: Sequence[str], *, target: str = ""
) -> MetricScores:
    """Compare translations with references by BLEU and chrF.

    Args:
        predictions: The translations.
        references: For each of them the text that it should be.
        target: Code of their language, after which BLEU's tokenizer is chosen: `"zh"`
            has its own, `"ja"` and `"ko"` want `pip install "sacrebleu[ja]"` or
            `"sacrebleu[ko]"`. Defaults to the tokenizer of most languages.

    Returns:
        `"bleu"` and `"chrf"` of the corpus, which are no means, and of each text
        (BLEU's by the n-grams that it is long enough for).

    Raises:
        ImportError: The extra `metrics` isn't installed.
        ValueError: There are no texts, or not as many of one as of the other.

    References:
        - [A Call for Clarity in Reporting BLEU Scores](https://aclanthology.org/W18-6319/)
        - [chrF: character n-gram F-score](https://aclanthology.org/W15-3049/)

    Example:

    >>> from keras_gpt.evaluation import score_translations
    >>> result = score_translations(["Das ist gut ."], ["Das ist gut ."])
    >>> round(result.scores["bleu"]), round(result.scores["chrf"])
    (100, 100)
    """
    predictions, references = _check_texts(
        predictions=predictions, references=references
    )
    require("metrics", "BLEU", "sacrebleu")
    from sacrebleu.metrics import BLEU

    metrics = _translation_metrics(target)
    scores = {
        name: metric.corpus_score(predictions, [references]).score
        for name, metric in metrics.items()
    }
    # after the corpus, of which they hold the number of references
    signatures = {name: str(metric.get_signature()) for name, metric in metrics.items()}
    metrics["bleu"] = BLEU(trg_lang=target, effective_order=True)
    by_text = {
        name: np.array(
            [
                metric.sentence_score(prediction, [reference]).score
                for prediction, reference in zip(predictions, references, strict=True)
            ]
        )
        for name, metric in metrics.items()
    }
    return MetricScores(scores=scores, by_text=by_text, signatures=signatures)


def compare_translations(
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[str],
    *,
    target: str = "",
    num_samples: int = 1000,
) -> dict[str, Comparison]:
    """Tell whether one system translates better than another, or was only lucky.

    BLEU and chrF of a corpus are no means, so whole corpora are drawn, in the same way
    from both systems: sacrebleu's paired bootstrap.

    Args:
        first: One system's translations.
        second: The other's, of the same texts.
        references: For each text what it should be.
        target: As of `score_translations`.
        num_samples: Corpora to draw.

    Returns:
        A `Comparison` for `"bleu"` and one for `"chrf"`.

    Raises:
        ImportError: The extra `metrics` isn't installed.
        ValueError: There are no texts, or not as many of one as of the other.

    References:
        - [Statistical Significance Tests for Machine Translation Evaluation](https://aclanthology.org/W04-3250/)

    Example:

    >>> from keras_gpt.evaluation import compare_translations
    >>> good, bad = ["Das ist gut ."] * 9, ["Das war schlecht ."] * 9
    >>> result = compare_translations(good, bad, good)["chrf"]
    >>> result.first > result.second, result.p_value < 0.05
    (True, True)
    """
    first, second, references = _check_texts(
        first=first, second=second, references=references
    )
    _check_count("num_samples", num_samples)
    require("metrics", "BLEU", "sacrebleu")
    from sacrebleu.significance import PairedTest

    metrics = _translation_metrics(target)
    test = PairedTest(
        [("first", first), ("second", second)],
        metrics,
        [references],
        test_type="bs",
        n_samples=num_samples,
    )
    signatures, results = test()
    # its own names hold the settings, as in "chrF2"
    pairs = [results[name] for name in signatures]
    return {
        name: Comparison(
            first=one.score,
            second=other.score,
            p_value=float(other.p_value),
            signature=str(signature),
        )
        for name, (one, other), signature in zip(
            metrics, pairs, signatures.values(), strict=True
        )
    }


def bootstrap_interval(
    first: Sequence[float],
    second: Sequence[float] | None = None,
    *,
    num_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Tell how certain a mean is, or a difference between two systems.

    Args:
        first: One value for each text, such as `by_text["rougeL"]`.
        second: Another system's values for the same texts: then the interval is that
            of the mean of `first - second`. There is a difference if 0 is outside.
        num_samples: Samples to draw, each of as many texts as there are.
        confidence: Part of the samples whose means are within the interval.
        seed: Of the samples.

    Returns:
        The mean with its percentile bootstrap interval.

    Raises:
        ValueError: The values are none, not finite or not as many of one as of the
            other, or an option is out of its range.

    References:
        - [An Introduction to the Bootstrap](https://doi.org/10.1201/9780429246593)

    Example:

    >>> from keras_gpt.evaluation import bootstrap_interval
    >>> interval = bootstrap_interval([3.0, 4.0, 5.0] * 20, [1.0, 2.0, 4.0] * 20)
    >>> round(interval.mean, 2), 1.5 < interval.low < interval.high < 1.9
    (1.67, True)
    """
    values = _check_values("first", first)
    if second is not None:
        second = _check_values("second", second)
        if len(second) != len(values):
            raise ValueError(
                "`first` and `second` must be values for the same texts. Received: "
                f"{len(values)} and {len(second)} values."
            )
        values = values - second
    _check_count("num_samples", num_samples)
    if not 0 < confidence < 1:
        raise ValueError(
            "`confidence` must be between 0 and 1, such as 0.95. Received: "
            f"confidence={confidence!r}."
        )
    random = np.random.default_rng(seed)
    # one sample after the other, so that memory stays flat
    means = [random.choice(values, len(values)).mean() for _ in range(num_samples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))


def _translation_metrics(target):
    from sacrebleu.metrics import BLEU, CHRF

    return {"bleu": BLEU(trg_lang=target), "chrf": CHRF()}


def _check_texts(**given) -> list[list[str]]:
    """The texts of each argument as lists, or a `ValueError` that names it."""
    lists = []
    for name, texts in given.items():
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise ValueError(
                f"`{name}` must be a list of texts. Received: {texts!r:.80}. For one "
                "text write [text]."
            )
        texts = list(texts)
        if not texts:
            raise ValueError(f"`{name}` must hold at least one text. Received: none.")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(
                    f"`{name}` must be texts, each a str. Received at {number}: "
                    f"{text!r:.80} of type {type(text).__name__}."
                )
        lists.append(texts)
    if len(set(map(len, lists))) > 1:
        counts = ", ".join(
            f"{len(texts)} {name}" for name, texts in zip(given, lists, strict=True)
        )
        raise ValueError(
            f"There must be one reference for each text. Received: {counts}."
        )
    return lists


def _check_values(name, values):
    values = np.asarray(values, dtype="float64")
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"`{name}` must be finite numbers, one for each text, such as "
            f"scores.by_text['rougeL']. Received: {values.tolist()!s:.80}."
        )
    return values


def _check_count(name, value):
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer, such as 1000. Received: "
            f"{name}={value!r}."
        )
