import math
from importlib import metadata

import numpy as np
import pytest

from keras_gpt.evaluation import (
    bootstrap_interval,
    compare_translations,
    score_summaries,
    score_translations,
)

# no model, no backend

REFERENCES = [
    "the cat sat on the mat",
    "a model reads the text",
    "it rains in the north",
]


def f1(matches, predicted, wanted):
    return 200 * matches / (predicted + wanted)


def test_rouge_equals_counts_by_hand():
    predictions = ["on the mat the cats sat", "a model", "sun"]
    result = score_summaries(predictions, REFERENCES)
    # of 6 words all are there, "cats" by its stem; of 5 pairs "on the", "the mat",
    # "the cat", "cat sat"; in order at most 3: "the cat sat" or "on the mat"
    expected = {
        "rouge1": [100, f1(2, 2, 5), 0],
        "rouge2": [f1(4, 5, 5), f1(1, 1, 4), 0],
        "rougeL": [f1(3, 6, 6), f1(2, 2, 5), 0],
    }
    assert list(result.scores) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(result.by_text[name], values)
        assert result.scores[name] == pytest.approx(np.mean(values))
    version = metadata.version("rouge-score")
    signature = f"stem:porter|tok:default|version:{version}"
    assert set(result.signatures.values()) == {signature}


def test_bleu_equals_its_formula():
    result = score_translations(
        ["the cat sat on a mat", "a model reads the text"], REFERENCES[:2]
    )
    # of 11, 9, 7 and 5 n-grams; as long as the references
    precisions = [10 / 11, 7 / 9, 5 / 7, 3 / 5]
    expected = 100 * math.prod(precisions) ** (1 / 4)
    assert result.scores["bleu"] == pytest.approx(expected)
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    np.testing.assert_allclose(result.by_text["bleu"], [expected, 100])
    # a text of two words has no longer n-grams
    short = score_translations(["a model"], ["a model"])
    assert short.by_text["bleu"] == pytest.approx([100])


def test_chrf_equals_its_formula():
    result = score_translations(["abc"], ["abd"])
    # 2 of 3 characters, 1 of 2 pairs, none of 1 triple, in both directions alike
    assert result.scores["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
    np.testing.assert_allclose(result.by_text["chrf"], [result.scores["chrf"]])


def test_signatures_are_those_of_sacrebleu():
    version = metadata.version("sacrebleu")
    signatures = score_translations(REFERENCES, REFERENCES).signatures
    assert signatures == {
        "bleu": f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}",
        "chrf": f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}",
    }


def test_chinese_is_counted_by_characters():
    translation, reference = ["我喜欢读书和写字"], ["我喜欢读书和画画"]
    result = score_translations(translation, reference, target="zh")
    assert "|tok:zh|" in result.signatures["bleu"]
    assert result.scores["bleu"] > 50
    assert score_translations(translation, reference).scores["bleu"] < 1


def test_equal_systems_do_not_differ_and_better_ones_do():
    references = REFERENCES * 10
    worse = [text.replace("the", "this") for text in references]
    for name, comparison in compare_translations(references, worse, references).items():
        assert comparison.first == pytest.approx(100)
        score = score_translations(worse, references).scores[name]
        assert comparison.second == pytest.approx(score)
        assert comparison.p_value < 0.01
        assert "|bs:1000|" in comparison.signature
    # each is the better one at every second text
    odd, even = list(references), list(references)
    odd[1::2], even[::2] = worse[1::2], worse[::2]
    for comparison in compare_translations(odd, even, references).values():
        assert comparison.p_value > 0.2


def test_interval_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    interval = bootstrap_interval(values, num_samples=4000)
    error = values.std() / math.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    # of 4000 samples; some percent of the width
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=error / 8)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=error / 8)
    narrow = bootstrap_interval(values, num_samples=4000, confidence=0.68)
    assert narrow.high - narrow.low == pytest.approx(2 * error, rel=0.1)


def test_paired_difference_is_surer_than_the_means():
    random = np.random.default_rng(2)
    difficulty = random.normal(50, 20, size=100)
    first = difficulty + 1 + random.normal(size=100)
    difference = bootstrap_interval(first, difficulty)
    assert 0.5 < difference.low < difference.mean < difference.high < 1.5
    # on their own the two could be equal
    assert bootstrap_interval(first).low < bootstrap_interval(difficulty).high
    assert bootstrap_interval(difficulty, difficulty).high == 0


def test_the_same_seed_gives_the_same_interval():
    values = [1.0, 2.0, 4.0, 8.0]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values * 9) != bootstrap_interval(values * 9, seed=1)


@pytest.mark.parametrize("function", [score_summaries, score_translations])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], ["a", "b"], "Received: 1 predictions, 2 references"),
        ([], [], "`predictions` must hold at least one text"),
        ("a", ["a"], "`predictions` must be a list of texts. Received: 'a'"),
        (["a"], None, "`references` must be a list of texts. Received: None"),
        (["a"], [b"a"], "`references` must be texts.*at 0: b'a' of type bytes"),
    ],
)
def test_bad_texts_are_refused(function, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        function(predictions, references)


def test_bad_comparisons_are_refused():
    with pytest.raises(ValueError, match="1 first, 2 second, 1 references"):
        compare_translations(["a"], ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="Received: num_samples=0"):
        compare_translations(["a"], ["a"], ["a"], num_samples=0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([[]], {}, "`first` must be finite numbers"),
        ([[1.0, math.nan]], {}, "`first` must be finite numbers.*nan"),
        ([[1.0], [[1.0]]], {}, "`second` must be finite numbers"),
        ([[1.0], [1.0, 2.0]], {}, "Received: 1 and 2 values"),
        ([[1.0]], {"num_samples": 0}, "num_samples=0"),
        ([[1.0]], {"confidence": 95}, "confidence=95"),
    ],
)
def test_bad_values_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(*arguments, **options)


def test_empty_texts_score_nothing():
    for function in (score_summaries, score_translations):
        assert set(function([""], ["a text"]).scores.values()) == {0}
