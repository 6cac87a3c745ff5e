import inspect

import numpy as np
import pytest

import keras_gpt
from keras_gpt import GPT, GPTConfig
from keras_gpt.controls import CONTROLS
from keras_gpt.generation import Generation
from keras_gpt.generation.rows import control_arrays, make_rows, pad_prompts

CONFIG = GPTConfig(
    vocab_size=11, context_length=16, embedding_dimension=8, num_layers=1, num_heads=2
)


@pytest.fixture(scope="module")
def model():
    return GPT(CONFIG)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("temperature", "top_p", "min_p", "repetition_penalty")
            for value in (-0.1, float("nan"), float("inf"), "high", [0.5, -1.0])
        ),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("top_k", 0),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", float("nan")),
        ("max_new_tokens", -1),
        ("max_new_tokens", 2.5),
        ("max_new_tokens", "many"),
        ("max_new_tokens", 10**9),
        ("temperature", [0.5, 0.5, 0.5]),
        ("max_new_tokens", []),
        ("temperature", [[0.5], [0.5]]),
        ("seed", -1),
        ("seed", [0, -1]),
        ("seed", [0]),
        ("seed", 1.5),
        ("seed", None),
        ("seed", "a"),
        ("stop_ids", [11]),
        ("stop_ids", [-1]),
        ("stop_ids", [0.5]),
        ("stop_ids", 3),
        ("stop_ids", [[1]]),
        ("stop_ids", [[1], [11]]),
        ("stop_ids", [[1], 2]),
        ("num_return_sequences", 0),
        ("num_return_sequences", 1.0),
        ("num_beams", 0),
        ("num_beams", 2.0),
    ],
)
def test_a_control_out_of_range_is_named(model, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        keras_gpt.generate(model, [[1, 2], [3]], **{"max_new_tokens": 2, name: value})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 2], []], "Prompt 1 is empty"),
        ([[1] * 17], "Prompt 0 .*17 tokens, context_length=16"),
        ([[1], [3, 11]], "from 0 to 10 .*Received: 11"),
        ([[-1]], "Received: -1"),
        ([[1.5]], "must be integers"),
        ([["a"]], "must be integers"),
        ([1, 2], r"`ids` .*write \[ids\]"),
        (np.array([1, 2]), r"`ids` .*write \[ids\]"),
        ("abc", "`ids` .*Received: str"),
        (5, "`ids` .*Received: int"),
        (["abc"], "`ids` .*'abc'"),
    ],
)
def test_a_wrong_prompt_is_named(model, ids, message):
    with pytest.raises(ValueError, match=message):
        keras_gpt.generate(model, ids, max_new_tokens=2)


def test_no_prompts_give_no_texts(model):
    assert keras_gpt.generate(model, []) == []
    assert keras_gpt.generate(model, [], num_beams=2) == []


def test_none_means_no_limit():
    rows = make_rows(CONFIG, [[1], [2]], top_k=None, top_p=None, min_p=[None, 0.1])
    arrays = control_arrays(rows)
    assert min(arrays["top_k"]) >= CONFIG.vocab_size
    assert arrays["top_p"].tolist() == [1, 1]
    np.testing.assert_allclose(arrays["min_p"], [0, 0.1], rtol=1e-6)


def test_a_limit_of_any_size_is_no_limit():
    arrays = control_arrays(make_rows(CONFIG, [[1]], top_k=10**12))
    assert arrays["top_k"].dtype == "int32"
    assert arrays["top_k"][0] >= CONFIG.vocab_size


def test_controls_repeat_for_each_returned_sequence():
    rows = make_rows(
        CONFIG, [[1], [2]], temperature=[0.5, 0.7], seed=5, num_return_sequences=2
    )
    assert [row.prompt for row in rows] == [[1], [1], [2], [2]]
    assert [row.temperature for row in rows] == [0.5, 0.5, 0.7, 0.7]
    assert [row.seed for row in rows] == [5, 6, 7, 8]


def test_generate_has_the_defaults_of_the_table():
    parameters = inspect.signature(keras_gpt.generate).parameters
    for name, control in CONTROLS.items():
        assert parameters[name].default == control.default


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("temprature", "temperature"),
        ("max_length", "max_new_tokens"),
        ("max_tokens", "max_new_tokens"),
        ("num_predict", "max_new_tokens"),
        ("do_sample", "temperature"),
        ("topk", "top_k"),
        ("repeat_penalty", "repetition_penalty"),
        ("beam_size", "num_beams"),
        ("stop", "stop_ids"),
    ],
)
def test_an_unknown_control_is_named_with_what_was_meant(model, name, ours):
    with pytest.raises(TypeError, match=f"'{name}'. Did you mean '{ours}'"):
        keras_gpt.generate(model, [[1]], **{name: 1})


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"temperature": -5}, "`temperature`"),
        ({"seed": -3}, "`seed`"),
        ({"lookup_tokens": 4}, "lookup_tokens=4, num_beams=2"),
        ({"lookup_tokens": -1}, "`lookup_tokens`"),
        ({"num_beams": 1, "length_penalty": 2.0}, "`length_penalty` .*num_beams=1"),
    ],
)
def test_beams_check_what_they_do_not_need(model, controls, message):
    with pytest.raises(ValueError, match=message):
        keras_gpt.generate(model, [[1, 2]], **{"num_beams": 2, **controls})


def test_room_is_made_for_what_the_context_holds(model):
    # so many tokens would take 12 MB a row, were they all given room at once
    run = Generation(model, [[1, 2]], max_new_tokens=2**20, temperature=0)
    run.advance(40)
    assert len(run.ids[0]) == 40 > CONFIG.context_length
    short = keras_gpt.generate(model, [[1, 2]], max_new_tokens=40, temperature=0)
    assert run.ids == short


@pytest.mark.parametrize(
    ("seed", "rows", "num_return_sequences", "expected"),
    [
        (3, 3, 1, [3, 4, 5]),
        ([7, 7, 0], 3, 1, [7, 7, 0]),
        ([10, 20], 2, 3, [10, 11, 12, 20, 21, 22]),
        (np.int64(3), 2, 1, [3, 4]),
    ],
)
def test_seeds_count_up(seed, rows, num_return_sequences, expected):
    made = make_rows(
        CONFIG, [[1]] * rows, seed=seed, num_return_sequences=num_return_sequences
    )
    assert [row.seed for row in made] == expected


def test_prompts_are_padded_on_the_right_within_the_context():
    token_ids, lengths = pad_prompts([[1, 2, 3], [4], [5] * 16], CONFIG)
    assert token_ids.shape[1] == 16
    assert lengths[:3].tolist() == [3, 1, 16]
    assert token_ids[0].tolist() == [1, 2, 3] + [0] * 13
    assert np.all(lengths >= 1)


def test_a_limit_that_int32_has_no_room_for_is_no_limit():
    rows = make_rows(CONFIG, [[1], [2]], top_k=[2**40, 1000])
    assert control_arrays(rows)["top_k"].tolist() == [2**30, 1000]
