import shutil
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

import keras_gpt
from keras_gpt.generation import Generation, programs
from keras_gpt.generation.programs import trace_counts
from keras_gpt.generation.sampling import draw_uniforms

pytestmark = pytest.mark.every_backend

PROMPTS = [[5, 1, 7], [22], [3, 3, 10, 9, 0, 2, 4, 8, 1]]
RECORDS = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch alone records its steps"
)
GREEDY = {"max_new_tokens": 12, "temperature": 0}


def naive(model, next_logits, prompts, max_new_tokens, pick=None):
    """Read the whole text anew for each token. The older half goes when it is full."""
    context_length = model.config.context_length
    starts = [0] * len(prompts)
    texts = [list(prompt) for prompt in prompts]
    log_probs = [[] for _ in prompts]
    for step in range(max_new_tokens):
        for row, text in enumerate(texts):
            if len(text) - starts[row] > context_length:
                starts[row] = len(text) - context_length // 2
        logits = next_logits(
            model, [t[start:] for t, start in zip(texts, starts, strict=True)]
        )
        for row, text in enumerate(texts):
            token = int(
                pick(row, step, text, logits[row]) if pick else logits[row].argmax()
            )
            log_softmax = logits[row] - np.log(np.sum(np.exp(logits[row])))
            log_probs[row].append(log_softmax[token])
            text.append(token)
    new = [t[len(prompt) :] for t, prompt in zip(texts, prompts, strict=True)]
    return new, log_probs


@pytest.mark.parametrize("variant", ["gpt2", "llama", "packed"])
def test_cached_ragged_batch_equals_reading_each_text_anew(
    models, next_logits, variant
):
    model = models(variant)
    run = Generation(model, PROMPTS, **GREEDY)
    run.advance()
    expected, log_probs = naive(model, next_logits, PROMPTS, 12)
    assert run.ids == expected
    assert any(len(set(row)) > 4 for row in run.ids)  # or this would show little
    # float32 sums in another order, at logits of about 10
    np.testing.assert_allclose(run.log_probs, log_probs, atol=1e-4)
    assert run.finish_reasons == ["length"] * 3


@RECORDS
@pytest.mark.parametrize("variant", ["gpt2", "llama", "packed"])
def test_steps_that_pytorch_replays_equal_those_that_it_ran(
    models, next_logits, variant
):
    # the last ones come from a recording
    model = models(variant)
    new = keras_gpt.generate(model, PROMPTS, max_new_tokens=23, temperature=0)
    assert new == naive(model, next_logits, PROMPTS, 23)[0]
    # the next call replays from its first step on
    new = keras_gpt.generate(model, PROMPTS, max_new_tokens=23, temperature=0)
    assert new == naive(model, next_logits, PROMPTS, 23)[0]


@RECORDS
def test_pytorch_records_no_step_for_a_length_that_is_close(models, monkeypatch):
    from keras_gpt.backend import torch_steps

    recorded, record = [], torch_steps._record

    def count(function, *arguments):
        recorded.append(function)
        return record(function, *arguments)

    monkeypatch.setattr(torch_steps, "_record", count)
    # six rows, a shape of its own
    model, prompts = models("gpt2"), PROMPTS * 2
    for length in (18, 22, 23, 25):
        keras_gpt.generate(model, prompts, max_new_tokens=length, temperature=0)
    assert len(recorded) == 2  # the model's, and how a token is noted


@RECORDS
@pytest.mark.parametrize("variant", ["gpt2", "llama", "packed"])
def test_steps_in_pieces_equal_those_that_pytorch_ran(
    models, next_logits, variant, monkeypatch
):
    from keras_gpt.backend import torch_steps

    pieces = []

    def keep(region, _):
        pieces.append(region)
        return region

    # five rows, a shape of its own: no step of it was recorded before
    model, prompts = models(variant), [*PROMPTS, *PROMPTS[:2]]
    monkeypatch.setattr(torch_steps, "_READS_BEFORE_COMPILING", 0)
    monkeypatch.setattr(torch_steps, "_STEPS_BEFORE_COMPILING", 18)
    monkeypatch.setattr(torch_steps, "compile_region", keep)
    new = keras_gpt.generate(model, prompts, max_new_tokens=23, temperature=0)
    assert new == naive(model, next_logits, prompts, 23)[0]
    # before the layers, one of them, and the last with what follows
    assert len(pieces) == 3


@RECORDS
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    # bfloat16, in which int4 multiplies, adds up in another order
    ("weights", "tolerance"),
    [("float32", 1e-5), ("int4", 0.02)],
)
def test_steps_that_pytorch_compiles_equal_those_that_it_ran(
    next_logits, monkeypatch, weights, tolerance
):
    from keras_gpt.backend import torch_steps

    monkeypatch.setattr(torch_steps, "_READS_BEFORE_COMPILING", 0)
    monkeypatch.setattr(torch_steps, "_STEPS_BEFORE_COMPILING", 18)
    model = make_small(1, weights)
    run = Generation(model, [[1, 2]], max_new_tokens=23, temperature=0)
    run.advance()
    expected, log_probs = naive(model, next_logits, [[1, 2]], 23)
    assert run.ids == expected
    np.testing.assert_allclose(run.log_probs, log_probs, atol=tolerance)


def test_documents_that_end_in_the_new_text_are_left_behind(models, next_logits):
    # the separator, 0, among what is sampled
    model = models("packed")
    prompts = [[0], [1, 0, 2], [5, 6, 7, 8, 0, 1, 1, 1, 0]]
    controls = {"max_new_tokens": 12, "temperature": 5.0, "seed": 119}
    texts = keras_gpt.generate(model, prompts, top_k=None, **controls)
    assert all(0 in text for text in texts)

    def replay(row, step, text, logits):
        del text, logits
        return texts[row][step]

    run = Generation(model, prompts, top_k=None, **controls)
    run.advance()
    _, log_probs = naive(model, next_logits, prompts, 12, replay)
    np.testing.assert_allclose(run.log_probs, log_probs, atol=1e-4)


def test_sampled_text_is_that_of_numpy(models, next_logits):
    model = models("gpt2")
    controls = {
        "temperature": [0.7, 1.5, 1.0],
        "top_k": [None, 6, 12],
        "top_p": [0.9, None, 0.8],
        "min_p": [None, 0.05, 0.02],
        "repetition_penalty": [1.0, 1.3, 1.7],
    }
    uniforms = draw_uniforms([40, 41, 42], 12)

    def pick(row, step, text, logits):
        penalty = controls["repetition_penalty"][row]
        logits = logits.copy()
        for token in set(text):
            logits[token] *= penalty if logits[token] < 0 else 1 / penalty
        logits = logits / controls["temperature"][row]
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities)[: controls["top_k"][row]]
        shares = probabilities[order] / probabilities[order].sum()
        top_p = controls["top_p"][row] or 1.0
        order = order[np.cumsum(shares) - shares < top_p]
        floor = (controls["min_p"][row] or 0.0) * probabilities.max()
        ids, uniform = np.flatnonzero(probabilities >= floor), uniforms[row][step]
        while True:
            cumulative = np.cumsum(probabilities[ids]) / probabilities[ids].sum()
            # none of these uniforms is so near an edge that float32 matters
            assert np.abs(cumulative - uniform).min() > 1e-5
            token = ids[np.searchsorted(cumulative, uniform, side="right")]
            if token in order:
                return token
            ids = ids[probabilities[ids] > probabilities[token]]
            uniform = draw_uniforms([int(uniform * 2**24)], 1)[0, 0]

    expected, log_probs = naive(model, next_logits, PROMPTS, 12, pick)
    run = Generation(model, PROMPTS, max_new_tokens=12, seed=40, **controls)
    run.advance()
    assert run.ids == expected
    np.testing.assert_allclose(run.log_probs, log_probs, atol=1e-4)


ROWS = {
    "max_new_tokens": [12, 5, 9],
    "temperature": [0.9, 0.0, 1.4],
    "top_k": [None, 40, 5],
    "top_p": [0.9, None, None],
    "min_p": [None, None, 0.1],
    "repetition_penalty": [1.0, 1.2, 1.5],
    "seed": [11, 0, 2**40],
}


def test_each_row_is_what_it_would_be_alone(models):
    model = models("gpt2")
    stop_ids = [[2], [], [3, 5, 7, 8, 1]]
    together = keras_gpt.generate(model, PROMPTS, stop_ids=stop_ids, **ROWS)
    alone = [
        keras_gpt.generate(
            model,
            [PROMPTS[row]],
            stop_ids=stop_ids[row],
            **{name: values[row] for name, values in ROWS.items()},
        )[0]
        for row in range(3)
    ]
    assert together == alone


@pytest.mark.parametrize("chunk", [1, 5])
def test_streamed_equals_whole(models, chunk):
    model = models("gpt2")
    whole = Generation(model, PROMPTS, stop_ids=[2], **ROWS)
    whole.advance()
    run = Generation(model, PROMPTS, stop_ids=[2], **ROWS)
    pieces = [[], [], []]
    calls = 0
    while not run.finished:
        new = run.advance(chunk)
        calls += 1
        assert all(len(piece) <= chunk for piece in new)
        for row, piece in enumerate(new):
            pieces[row] += piece
    assert calls >= 12 / chunk
    assert pieces == run.ids == whole.ids
    assert run.finish_reasons == whole.finish_reasons
    for ours, theirs in zip(run.log_probs, whole.log_probs, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)  # the same program
    assert run.advance() == [[], [], []]


def test_stop_ids_end_a_row_and_are_left_out(models):
    model = models("gpt2")
    whole = keras_gpt.generate(model, PROMPTS, **GREEDY)
    stop = whole[0][4]
    other = next(t for t in whole[2] if t != stop)
    run = Generation(model, PROMPTS, stop_ids=[stop, other], **GREEDY)
    run.advance()
    for row, text in enumerate(whole):
        places = [i for i, token in enumerate(text) if token in (stop, other)]
        end = places[0] if places else 12
        assert run.ids[row] == text[:end]
        assert len(run.log_probs[row]) == end
        assert run.finish_reasons[row] == ("stop" if places else "length")
    assert "stop" in run.finish_reasons


def test_a_row_that_stopped_at_a_separator_disturbs_no_other(models):
    model = models("packed")
    prompts = [[5, 6, 0], *PROMPTS[1:]]
    expected = keras_gpt.generate(model, prompts, **GREEDY)
    # row 0 ends at once, after the separator that its prompt ends with
    texts = keras_gpt.generate(
        model, prompts, max_new_tokens=[0, 12, 12], temperature=0, stop_ids=[0]
    )
    for text, row in zip(texts[1:], expected[1:], strict=True):
        assert text == (row[: row.index(0)] if 0 in row else row)
    assert texts[0] == []


def test_a_row_can_be_ended_from_outside(models):
    model = models("gpt2")
    whole = keras_gpt.generate(model, PROMPTS, **GREEDY)
    run = Generation(model, PROMPTS, **GREEDY)
    run.advance(4)
    assert run.finish_reasons == [None, None, None]
    run.stop(1)
    run.advance()
    assert run.ids == [whole[0], whole[1][:4], whole[2]]
    assert run.finish_reasons == ["length", "stop", "length"]
    assert run.finished


def test_each_row_has_its_own_number_of_new_tokens(models):
    model = models("gpt2")
    whole = keras_gpt.generate(model, PROMPTS, **GREEDY)
    texts = keras_gpt.generate(model, PROMPTS, max_new_tokens=[3, 0, 12], temperature=0)
    assert texts == [whole[0][:3], [], whole[2]]
    assert keras_gpt.generate(model, PROMPTS, max_new_tokens=0) == [[], [], []]


def test_seeds_decide_what_is_sampled(models):
    model = models("gpt2")
    same = [PROMPTS[2]] * 3
    controls = {"max_new_tokens": 12, "temperature": 1.5, "top_k": None}
    texts = keras_gpt.generate(model, same, seed=3, **controls)
    assert texts == keras_gpt.generate(model, same, seed=3, **controls)
    assert texts[0] != texts[1] != texts[2]
    assert texts == keras_gpt.generate(model, same, seed=[3, 4, 5], **controls)
    assert texts[1:] == keras_gpt.generate(model, same, seed=4, **controls)[:2]
    assert texts == keras_gpt.generate(
        model, same[:1], seed=3, num_return_sequences=3, **controls
    )


def test_text_beyond_the_context_forgets_its_older_half(models, next_logits):
    model = models("packed")
    prompts = [[5, 1, 7], [int(i) for i in np.arange(32) % 23], [9] * 20]
    run = Generation(model, prompts, max_new_tokens=[45, 45, 14], temperature=0)
    run.advance()
    expected, _ = naive(model, next_logits, prompts, 45)
    assert run.ids == [expected[0], expected[1], expected[2][:14]]
    # piece by piece, and no further than was asked for
    run = Generation(model, prompts, max_new_tokens=[45, 45, 14], temperature=0)
    while not run.finished:
        run.advance(6)
        assert all(len(row.ids) == row.num_given for row in run.rows)
    assert run.ids == [expected[0], expected[1], expected[2][:14]]


def test_new_weights_write_new_text(models):
    # a compiled program must not have kept the old ones
    model = models("llama")
    before = keras_gpt.generate(model, PROMPTS, **GREEDY)
    weights = model.get_weights()
    try:
        model.set_weights([-weight for weight in weights])
        assert keras_gpt.generate(model, PROMPTS, **GREEDY) != before
    finally:
        model.set_weights(weights)
    assert keras_gpt.generate(model, PROMPTS, **GREEDY) == before


def make_small(num_layers=2, weights="float32"):
    config = {"vocab_size": 23, "context_length": 32, "embedding_dimension": 32}
    config |= {"num_layers": num_layers, "num_heads": 4}
    model = keras_gpt.GPT(keras_gpt.GPTConfig(**config))
    if weights != "float32":
        model.quantize(weights)
    return model


@RECORDS
@pytest.mark.parametrize("weights", ["float32", "int8", "int4"])
def test_recorded_steps_follow_new_weights(weights):
    def measure(model):
        run = Generation(model, [[1, 2]], max_new_tokens=24, temperature=0)
        run.advance()
        return np.array(run.log_probs)

    model, other = (make_small(2, weights) for _ in range(2))
    before, expected = measure(model), measure(other)
    for variable, new in zip(model.variables, other.variables, strict=True):
        variable.assign(new)
    after = measure(model)
    np.testing.assert_allclose(after, expected, atol=1e-4)  # some steps were recorded
    assert np.abs(before - expected).max() > 1e-2


def test_half_precision_generates():
    config = keras_gpt.GPTConfig(
        vocab_size=11,
        context_length=16,
        embedding_dimension=16,
        num_layers=1,
        num_heads=2,
    )
    model = keras_gpt.GPT(config, dtype="mixed_bfloat16")
    run = Generation(model, [[1, 2]], max_new_tokens=5)
    run.advance()
    assert len(run.ids[0]) == 5
    assert all(0 <= token < 11 for token in run.ids[0])
    assert np.all(np.isfinite(run.log_probs[0]))


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="on PyTorch nothing is traced"
)
def test_other_controls_and_lengths_in_a_bucket_trace_nothing_again(models):
    model = models("gpt2")
    keras_gpt.generate(model, PROMPTS, max_new_tokens=12)
    before = dict(trace_counts)
    assert before["prefill"] > 0
    assert before["loop"] > 0
    keras_gpt.generate(model, PROMPTS, **GREEDY)
    keras_gpt.generate(
        model, PROMPTS, **{**ROWS, "max_new_tokens": 10}, stop_ids=[1, 2]
    )
    keras_gpt.generate(
        model, [[1], [2] * 16, [3], [4]], max_new_tokens=[1, 2, 3, 12], top_p=0.3
    )
    run = Generation(model, PROMPTS, max_new_tokens=11)
    while not run.finished:
        run.advance(3)
    assert trace_counts == before
    # but where the shape is another one, something is
    keras_gpt.generate(model, [[1], [2], [3], [4], [5]], max_new_tokens=1)
    assert trace_counts["prefill"] == before["prefill"] + 1


def test_threads_get_what_each_gets_alone(models):
    model = models("llama")

    def answer(seed):
        # of lengths that PyTorch has not recorded yet, and some that it has
        length = 20 + seed % 3
        return keras_gpt.generate(model, PROMPTS, max_new_tokens=length, seed=seed)

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(answer, range(12)))
    assert together == [answer(seed) for seed in range(12)]


def test_the_programs_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(programs, "_MOST_PROGRAMS", 2)

    def program(model, length):
        return lambda state, inputs: (state, inputs, length)

    def find(length):
        return programs.compiled(model, program, length=length)

    model = make_small()
    one, two = find(1), find(2)
    assert find(1) is one
    three = find(3)
    assert find(1) is one
    assert find(3) is three
    assert find(2) is not two
