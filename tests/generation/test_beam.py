import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_gpt
from keras_gpt.generation import beam_search
from keras_gpt.generation.programs import trace_counts

PROMPTS = [[5, 1, 7], [22], [3, 3, 10, 9, 0, 2, 4, 8, 1]]


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def every_text(model, prompt, length, stop):
    """All texts of `length` tokens or up to `stop`: `[(log-probability, text)]`."""
    texts = np.array(list(itertools.product(range(4), repeat=length)))
    whole = np.concatenate([np.tile(prompt, (len(texts), 1)), texts], axis=1)
    logits = ops.convert_to_numpy(model(whole[:, :-1])).astype("float64")
    log_probs = log_softmax(logits[:, len(prompt) - 1 :])
    chosen = np.take_along_axis(log_probs, texts[..., None], -1)[..., 0]
    found = {}
    for text, steps in zip(texts.tolist(), chosen, strict=True):
        end = text.index(stop) + 1 if stop in text else length
        found[tuple(text[:end])] = steps[:end].sum()
    return [(score, text) for text, score in found.items()]


@pytest.mark.every_backend
@pytest.mark.parametrize(
    ("stop", "length_penalty"), [(None, 1.0), (3, 1.0), (3, 0.0), (3, 2.5)]
)
def test_enough_beams_find_the_best_texts(models, stop, length_penalty):
    model = models("tiny")
    # the context is 4: the last of 5 tokens needs no room in it
    for prompt in ([1, 2], [2, 0]):
        candidates = every_text(model, prompt, 3, stop)
        candidates.sort(key=lambda c: -c[0] / len(c[1]) ** length_penalty)
        found = beam_search(
            model,
            [prompt],
            num_beams=64,  # as many as there are texts: none is ever dropped
            max_new_tokens=3,
            stop_ids=[] if stop is None else [stop],
            length_penalty=length_penalty,
            num_return_sequences=6,
        )
        best = [list(text) for _, text in candidates[:6]]
        assert found == [text[:-1] if text[-1] == stop else text for text in best]


@pytest.mark.every_backend
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.5])
def test_a_beam_of_1_is_greedy(models, repetition_penalty):
    model = models("gpt2")
    controls = {
        "max_new_tokens": 12,
        "repetition_penalty": repetition_penalty,
        "stop_ids": [2],
    }
    greedy = keras_gpt.generate(model, PROMPTS, temperature=0, **controls)
    assert beam_search(model, PROMPTS, num_beams=1, **controls) == greedy


def naive_beam(model, next_logits, prompt, num_beams, max_new_tokens):
    """Read each beam's whole text anew for each token."""
    beams = [(0.0, [])]
    for _ in range(max_new_tokens):
        texts = [prompt + text for _, text in beams]
        texts += [prompt] * (num_beams - len(texts))  # one shape
        log_probs = log_softmax(next_logits(model, texts))
        beams = [
            (score + step[token], [*text, token])
            for (score, text), step in zip(beams, log_probs, strict=False)
            for token in range(model.config.vocab_size)
        ]
        beams = sorted(beams, key=lambda beam: -beam[0])[:num_beams]
    return [text for _, text in beams]


@pytest.mark.every_backend
def test_beams_of_a_ragged_batch_are_those_of_each_prompt(models, next_logits):
    model = models("packed")
    found = beam_search(
        model, PROMPTS, num_beams=3, max_new_tokens=12, num_return_sequences=3
    )
    expected = [naive_beam(model, next_logits, prompt, 3, 12) for prompt in PROMPTS]
    assert found == list(itertools.chain(*expected))
    greedy = keras_gpt.generate(model, PROMPTS, max_new_tokens=12, temperature=0)
    assert found[::3] != greedy  # or this would show little


@pytest.mark.every_backend
def test_generate_with_beams_is_beam_search(models):
    model = models("packed")
    controls = {"num_beams": 3, "max_new_tokens": 12, "num_return_sequences": 2}
    before = dict(trace_counts)
    texts = keras_gpt.generate(model, PROMPTS, temperature=0.5, seed=3, **controls)
    assert texts == beam_search(model, PROMPTS, **controls)
    if keras.backend.backend() != "torch":  # where nothing is traced
        assert trace_counts["beam"] - before["beam"] <= 1


@pytest.mark.every_backend
def test_each_row_has_its_own_number_of_new_tokens(models):
    model = models("packed")
    texts = beam_search(model, PROMPTS, num_beams=3, max_new_tokens=[2, 0, 12])
    assert list(map(len, texts)) == [2, 0, 12]
    short = beam_search(model, PROMPTS, num_beams=3, max_new_tokens=2)
    long = beam_search(model, PROMPTS, num_beams=3, max_new_tokens=12)
    assert texts == [short[0], [], long[2]]


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"num_beams": 0}, "`num_beams`"),
        ({"num_beams": 2.5}, "`num_beams`"),
        ({"num_beams": "2"}, "`num_beams`"),
        ({"num_beams": 2, "num_return_sequences": 3}, "`num_return_sequences`"),
        ({"num_beams": 2, "num_return_sequences": 0}, "`num_return_sequences`"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "`length_penalty`"),
        ({"num_beams": 2, "max_new_tokens": 25}, "34 tokens, context_length=32"),
    ],
)
def test_what_beams_cannot_do_is_named(models, controls, message):
    with pytest.raises(ValueError, match=message):
        beam_search(models("gpt2"), PROMPTS, **{"max_new_tokens": 4, **controls})
