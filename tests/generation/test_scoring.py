import math

import keras
import numpy as np
import pytest

from keras_gpt import GPT, GPTConfig
from keras_gpt.generation import evaluate_ids, score, scoring
from keras_gpt.generation.scoring import score_against_greedy
from keras_gpt.tokenizers import CharacterTokenizer

ALPHABET = "abcdefghijklmnopqrst"
END = "<|endoftext|>"
# as many ids as the models have; "ä" takes 2 bytes, the last id none
TOKENIZER = CharacterTokenizer(ALPHABET + "äö", [END])


@pytest.fixture(scope="module")
def model(models):
    return models("gpt2")  # vocab_size 23, context_length 32


@pytest.fixture(scope="module")
def expected(model, next_logits):
    """A function: log-probabilities of a row by NumPy, from the whole model."""

    def compute(row):
        logits = next_logits(model, [row[:i] for i in range(1, len(row))])
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return log_probs[np.arange(len(row) - 1), row[1:]]

    return compute


def random_ids(length, seed=0):
    return np.random.default_rng(seed).integers(0, 23, size=length).tolist()


@pytest.mark.every_backend
def test_scores_equal_log_softmax_by_numpy(model, expected):
    # one after another of other lengths; 33 is the longest: the last has no successor
    rows = [random_ids(length, length) for length in (5, 33, 1, 2, 9, 33, 3, 4, 30, 7)]
    scores = score(model, rows)
    assert [s.shape for s in scores] == [(len(row) - 1,) for row in rows]
    for row, found in zip(rows, scores, strict=True):
        assert found.dtype == np.float32
        if len(row) > 1:
            # float32 logits of order 10
            np.testing.assert_allclose(found, expected(row), atol=1e-4)


@pytest.mark.every_backend
def test_a_score_does_not_depend_on_the_rows_beside_it(model):
    row, long = random_ids(6), random_ids(30, 1)
    [alone] = score(model, [row])
    beside = score(model, [long, row, long])[1]
    # float32 logits of order 10, other shapes of the products
    np.testing.assert_allclose(beside, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2], []], "Prompt 1 is empty"),
        ([[0] * 34], "Received: 34 tokens, context_length=32"),
        ([[1, 23]], "from 0 to 22"),
    ],
)
def test_bad_rows_are_refused(model, rows, message):
    with pytest.raises(ValueError, match=message):
        score(model, rows)


@pytest.mark.every_backend
@pytest.mark.parametrize("num_tokens", [2, 32, 33, 34, 64, 65, 66, 97])
def test_evaluation_equals_windows_by_hand(model, expected, num_tokens):
    ids = random_ids(num_tokens)
    # each window begins with the token that the one before ended with
    windows = [ids[start : start + 33] for start in range(0, num_tokens - 1, 32)]
    losses = -np.concatenate([expected(window) for window in windows])
    assert len(losses) == num_tokens - 1
    result = evaluate_ids(model, [ids], TOKENIZER.decode_bytes)
    assert result.num_tokens == num_tokens - 1
    # float32 logits of order 10
    assert result.loss == pytest.approx(losses.mean(), abs=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    # all but the first token were predicted; special tokens are no text
    num_bytes = len(TOKENIZER.decode(ids[1:], skip_special_tokens=True).encode())
    bits = losses.sum() / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / max(num_bytes, 1), rel=1e-5)


def test_evaluation_does_not_depend_on_the_pieces(model):
    ids = random_ids(150, 3)
    whole = evaluate_ids(model, [ids], TOKENIZER.decode_bytes)
    for size in (1, 7, 32, 33, 64, 149):
        pieces = (ids[i : i + size] for i in range(0, len(ids), size))
        assert evaluate_ids(model, pieces, TOKENIZER.decode_bytes) == whole
    assert evaluate_ids(model, [[], ids, []], TOKENIZER.decode_bytes) == whole


@pytest.mark.parametrize("pieces", [[], [[]], [[1]], [[], [1], []]])
def test_one_token_is_too_few_to_evaluate(model, pieces):
    with pytest.raises(ValueError, match="at least two tokens"):
        evaluate_ids(model, pieces, TOKENIZER.decode_bytes)


@pytest.mark.parametrize("function", [score, score_against_greedy])
def test_logits_of_a_part_at_a_time_give_the_same_scores(monkeypatch, function):
    config = GPTConfig(
        vocab_size=23,
        context_length=16,
        embedding_dimension=8,
        num_layers=1,
        num_heads=2,
    )
    rows = np.random.default_rng(0).integers(23, size=(3, 17)).tolist()
    results = []
    for at_once in (scoring._LOGITS_AT_ONCE, 5 * 23):  # the latter divides nothing
        monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", at_once)
        keras.utils.set_random_seed(0)
        results.append(function(GPT(config), rows))
    for whole, parts in zip(*results, strict=True):
        # float32 sums of 8 in another order
        np.testing.assert_allclose(parts, whole, atol=1e-6)
