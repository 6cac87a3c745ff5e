import json
import math

import numpy as np
import pytest

from keras_gpt import GPT, BytePairTokenizer, GPTConfig, LanguageModel
from keras_gpt.evaluation import evaluate_task, score_summaries, score_translations

SUMMARIES = [
    {"text": f"The number {n} comes before the number {n + 1}.", "summary": f"It's {n}"}
    for n in range(5)
]
TRANSLATIONS = [
    {
        "source": f"Number {n}",
        "target": f"Nummer {n}",
        "source_language": "en",
        "target_language": "de",
    }
    for n in range(5)
]


@pytest.fixture(scope="module")
def lm():
    tokenizer = BytePairTokenizer.train([json.dumps(SUMMARIES + TRANSLATIONS)], 300)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=64,
        embedding_dimension=16,
        num_layers=1,
        num_heads=2,
    )
    lm = LanguageModel(GPT(config), tokenizer)
    lm.tasks = {"summarize": {}, "translate": {"languages": [["en", "de"]]}}
    return lm


def write(path, records):
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_summaries_are_scored_by_loss_and_rouge(lm, tmp_path):
    path = write(tmp_path / "test.jsonl", SUMMARIES)
    result = evaluate_task(lm, path, max_new_tokens=8, batch_size=2)
    assert (result.task, result.num_examples) == ("summarize", 5)
    references = [record["summary"] for record in SUMMARIES]
    expected = score_summaries(result.predictions, references)
    assert result.scores == expected.scores
    low, high = result.intervals["rougeL"]
    assert low <= result.scores["rougeL"] <= high
    # the loss by hand: of the answers' tokens, given all before them
    total, count, num_bytes = 0.0, 0, 0
    for record in SUMMARIES:
        prompt = lm.tokenizer.encode(f"{record['text']}\n\nSummary:")
        answer = lm.tokenizer.encode(f" {record['summary']}")
        log_probs = lm.score(f"{record['text']}\n\nSummary: {record['summary']}")
        assert len(log_probs) == len(prompt) + len(answer) - 1
        total -= float(np.sum(log_probs[len(prompt) - 1 :]))
        num_bytes += len(f" {record['summary']}")
        count += len(answer) + 1
    ends = result.loss * count - total  # of the ends of text
    assert 5 * 4 < ends < 5 * 8  # an untrained model's: about ln(300) each
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    bits = result.loss * count / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / num_bytes)


def test_translations_are_scored_by_bleu_and_chrf(lm, tmp_path):
    path = write(tmp_path / "test.jsonl", TRANSLATIONS)
    result = evaluate_task(lm, path, limit=3, max_new_tokens=8)
    assert (result.task, result.num_examples) == ("translate", 3)
    references = [record["target"] for record in TRANSLATIONS[:3]]
    expected = score_translations(result.predictions, references, target="de")
    assert result.scores == expected.scores
    assert "tok:13a" in result.signatures["bleu"]


def test_other_tasks_have_a_loss(lm, tmp_path):
    path = write(tmp_path / "test.jsonl", [{"prompt": "Number", "completion": " 1"}])
    result = evaluate_task(lm, path)
    assert (result.task, result.scores, result.predictions) == ("complete", {}, [])
    assert 4 < result.loss < 8


def test_a_mixture_of_tasks_is_refused(lm, tmp_path):
    path = write(tmp_path / "test.jsonl", SUMMARIES + TRANSLATIONS)
    with pytest.raises(ValueError, match="must be of one task and one pair"):
        evaluate_task(lm, path)
