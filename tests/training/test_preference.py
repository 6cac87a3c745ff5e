import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt import training
from keras_gpt.data import Example

LENGTH = 7
BETA = 0.3
JIT = keras.backend.backend() == "jax"  # others compile longer than they run


def array(x):
    return np.array(ops.convert_to_numpy(x))


def example(prompt, answer):
    is_answer = [False] * len(prompt) + [True] * len(answer)
    return Example([*prompt, *answer], is_answer)


# after any prompt an answer that starts with 8 is better than one with 9
PAIRS = [
    (example([1, 2, 3], [8, 4, 0]), example([1, 2, 3], [9, 0])),
    (example([4, 5], [8, 0]), example([4, 5], [9, 4, 6, 0])),
    (example([6], [8, 7, 0]), example([6], [9, 0])),
    (example([2, 7, 1, 3, 5], [8, 4, 0]), example([2, 7, 1, 3, 5], [9, 4, 0])),
]


def answer_log_prob(logits, example):
    """Of the answer's tokens alone, by NumPy in float64."""
    scores = logits[: len(example.token_ids) - 1].astype("float64")
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return sum(
        log_probs[i - 1, example.token_ids[i]]
        for i in range(1, len(example.token_ids))
        if example.is_answer[i]
    )


def margins_by_numpy(model, pairs=PAIRS):
    """`log p(chosen) - log p(rejected)` of each pair."""
    examples = [example for pair in pairs for example in pair]
    ids = [e.token_ids + [0] * (LENGTH + 1 - len(e.token_ids)) for e in examples]
    logits = array(model(np.array(ids)))
    log_probs = np.array(list(map(answer_log_prob, logits, examples)))
    return log_probs[::2] - log_probs[1::2]


@pytest.fixture
def make_base(make_model):
    """A function: a GPT whose answers differ in likelihood."""

    def make(seed=0, **fields):
        model = make_model(seed, **fields)
        random = np.random.default_rng(seed)
        for weight in model.trainable_variables:
            weight.assign(random.normal(scale=0.3, size=weight.shape).astype("float32"))
        return model

    return make


def load(margins, pairs=PAIRS, order="sequential", batch_size=4, **kwargs):
    return training.load_preferences(
        pairs, margins, batch_size, LENGTH, order=order, **kwargs
    )


def evaluate(preferences, batches, **kwargs):
    return preferences.evaluate(
        batches, steps=len(batches), verbose=0, return_dict=True, **kwargs
    )


def fit(preferences, margins, steps):
    return preferences.fit(
        load(margins, order="random"), steps_per_epoch=steps, shuffle=False, verbose=0
    )


def test_reference_margins_equal_those_by_numpy(make_base):
    model = make_base()
    margins = training.reference_margins(model, PAIRS, LENGTH, batch_size=3)
    expected = margins_by_numpy(model)
    assert np.abs(expected).max() > 1
    assert margins.dtype == np.float32
    # float32 sums of some log-probabilities of about 3
    np.testing.assert_allclose(margins, expected, atol=1e-4)


def test_the_loss_starts_at_ln_2_where_the_reference_is_the_model(
    make_base, compile_model
):
    model = make_base()
    training.enable_lora(model, rank=2)
    margins = training.reference_margins(model, PAIRS, LENGTH, batch_size=4)
    preferences = training.PreferenceModel(model)
    compile_model(preferences)
    # float32 sums in another order change margins by 1e-6
    loss = evaluate(preferences, load(margins))["loss"]
    assert loss == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.every_backend
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_equals_the_formula_by_numpy(make_base, compile_model, smoothing):
    model, reference = make_base(0), make_base(1)
    margins = training.reference_margins(reference, PAIRS, LENGTH)
    preferences = training.PreferenceModel(model, beta=BETA)
    compile_model(
        preferences,
        loss=keras.losses.BinaryCrossentropy(
            from_logits=True, label_smoothing=smoothing
        ),
    )
    logits = BETA * (margins_by_numpy(model) - margins_by_numpy(reference))
    chosen, rejected = np.log1p(np.exp(-logits)), np.log1p(np.exp(logits))
    # a smoothed target of 0.9 for 0.2
    expected = (1 - smoothing / 2) * chosen + smoothing / 2 * rejected
    found = evaluate(preferences, load(margins))
    # float32 margins of about 10
    assert found["loss"] == pytest.approx(expected.mean(), abs=1e-4)
    assert found["accuracy"] == pytest.approx((logits > 0).mean())


@pytest.mark.every_backend
def test_the_gradient_equals_the_formula(make_base):
    # of DPO, equation 7: beta times the probability that the model is wrong, times
    # the gradient of the margin; here along a direction, by finite differences
    model, reference = make_base(0), make_base(1)
    margins = training.reference_margins(reference, PAIRS, LENGTH)
    preferences = training.PreferenceModel(model, beta=BETA)
    preferences.compile(keras.optimizers.SGD(1.0), jit_compile=JIT)
    kernel = model.blocks[0].feed_forward.up_projection.kernel
    start = array(kernel)
    direction = np.random.default_rng(0).normal(size=start.shape)
    direction /= np.linalg.norm(direction)
    before, shifted = margins_by_numpy(model), []
    step = 0.01
    for sign in (1, -1):
        kernel.assign((start + sign * step * direction).astype("float32"))
        shifted.append(margins_by_numpy(model))
    kernel.assign(start)
    slope = (shifted[0] - shifted[1]) / (2 * step)
    wrong = 1 / (1 + np.exp(BETA * (before - margins)))
    expected = -(BETA * wrong * slope).mean()
    fit(preferences, margins, 1)
    gradient = ((start - array(kernel)) * direction).sum()
    # the margins are float32, of which the slope is a small difference
    assert gradient == pytest.approx(expected, rel=0.02, abs=1e-4)


def test_prompts_and_padding_do_not_count(make_base):
    # the tokens of the prompt are in both rows, at the same places
    model = make_base()
    longer = training.load_preferences(
        PAIRS, np.zeros(4), 4, LENGTH + 1, order="sequential"
    )
    preferences = training.PreferenceModel(model, beta=1.0)
    found = [
        preferences.predict(batches, steps=1, verbose=0)[:, 0]
        for batches in (load(np.zeros(4)), longer)
    ]
    # float32 sums of some log-probabilities of about 3
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    [inputs, targets] = next(iter(load(np.zeros(4))))
    for row, pair in enumerate(PAIRS):
        for name, side in zip(("chosen", "rejected"), pair, strict=True):
            ids, weights = inputs[f"{name}_ids"][row], inputs[f"{name}_weights"][row]
            answer = [i for i, learned in zip(ids[1:], weights, strict=True) if learned]
            assert answer == side.token_ids[side.is_answer.index(True) :]
    np.testing.assert_array_equal(targets, np.ones((4, 1)))


@pytest.mark.every_backend
def test_adapters_learn_what_is_preferred_to_the_base(make_base, compile_model):
    model = make_base()
    base = margins_by_numpy(model)
    assert (base < 0).any()
    training.enable_lora(model, rank=4)
    margins = training.reference_margins(model, PAIRS, LENGTH)
    preferences = training.PreferenceModel(model, beta=BETA)
    compile_model(preferences, 2e-2)
    assert len(preferences.trainable_variables) == 2 * len(model.adapters.layers)
    fit(preferences, margins, 40)
    assert (margins_by_numpy(model) > np.maximum(base, 0)).all()
    assert evaluate(preferences, load(margins))["accuracy"] == 1
    # the reference is the base still
    again = training.reference_margins(model, PAIRS, LENGTH)
    np.testing.assert_array_equal(again, margins)
    training.remove_lora(model)
    np.testing.assert_allclose(margins_by_numpy(model), base, atol=1e-6)


def test_all_weights_learn_beside_a_frozen_reference(make_base, compile_model):
    model, reference = make_base(0), make_base(1)
    margins = training.reference_margins(reference, PAIRS, LENGTH)
    preferences = training.PreferenceModel(model, beta=BETA)
    compile_model(preferences, 1e-2)
    history = fit(preferences, margins, 40).history
    assert set(history) == {"loss", "accuracy"}
    found = evaluate(preferences, load(margins))
    assert found["accuracy"] == 1
    assert found["loss"] < np.log(2) / 2
    assert (margins_by_numpy(model) > margins_by_numpy(reference)).all()
    again = training.reference_margins(reference, PAIRS, LENGTH)
    np.testing.assert_array_equal(again, margins)


@pytest.mark.every_backend
def test_half_precision_keeps_margins_exact(make_model):
    model = make_model(dtype="mixed_bfloat16")
    preferences = training.PreferenceModel(model, beta=1.0)
    [inputs, _] = next(iter(load(np.full(4, 300.1))))
    logits = array(preferences(inputs))[:, 0]
    # bfloat16 knows 300 and 302; the answers are short and all alike
    lengths = [sum(r.is_answer) - sum(c.is_answer) for c, r in PAIRS]
    expected = np.log(11) * np.array(lengths) - 300.1
    np.testing.assert_allclose(logits, expected, atol=0.5)
    assert logits.dtype == np.float32
    shifted = {**inputs, "reference_margin": inputs["reference_margin"] + 0.1}
    moved = logits - array(preferences(shifted))[:, 0]
    np.testing.assert_allclose(moved, 0.1, atol=1e-4)  # float32


def test_a_run_resumes_bit_for_bit(make_base, compile_model, tmp_path):
    margins = np.zeros(4)

    def make():
        model = make_base()
        training.enable_lora(model, rank=2, dropout_rate=0.3)
        preferences = training.PreferenceModel(model)
        compile_model(preferences, 1e-2, total_steps=4)
        return preferences

    def train(preferences, steps, start=0):
        batches = load(margins, order="random", batch_size=2, start_step=start)
        preferences.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)

    whole = make()
    train(whole, 2)
    training.save_state(whole, tmp_path / "state.npz", 2)
    train(whole, 2, start=2)
    resumed = make()
    assert training.load_state(resumed, tmp_path / "state.npz") == 2
    train(resumed, 2, start=2)
    for a, b in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(array(a), array(b))


def test_random_order_visits_every_pair_once_an_epoch():
    batches = load(np.arange(4.0), order="random", batch_size=2, seed=3)
    iterator = iter(batches.repeat())
    for _ in range(3):
        rows = [next(iterator)[0]["reference_margin"][:, 0] for _ in range(2)]
        assert sorted(np.concatenate(rows)) == [0, 1, 2, 3]
    later = next(
        iter(load(np.arange(4.0), order="random", batch_size=2, seed=3, start_step=6))
    )
    np.testing.assert_array_equal(
        later[0]["reference_margin"], next(iterator)[0]["reference_margin"]
    )


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "There are no pairs"),
        (
            [PAIRS[0], (example([1, 2], [8]), example([1, 3], [9]))],
            r"pair 1 must have the same prompt.*2 and 2 ids: \[1, 2\] and \[1, 3\]",
        ),
        (
            [(example([1, 2], [8]), example([1, 2], []))],
            "rejected example of pair 0 has no answer",
        ),
        (
            [(example([], [8]), example([], [9, 1]))],
            "chosen example of pair 0 has no answer .* behind its first id",
        ),
        (
            [(example([1] * 6, [8]), example([1] * 6, [9, 1, 0]))],
            "`sequence_length` must be at least 8 .*sequence_length=7",
        ),
    ],
)
def test_bad_pairs_are_refused(make_model, pairs, message):
    with pytest.raises(ValueError, match=message):
        load(np.zeros(len(pairs)), pairs)
    with pytest.raises(ValueError, match=message):
        training.reference_margins(make_model(), pairs, LENGTH)


def test_bad_arguments_are_refused(make_model):
    with pytest.raises(ValueError, match=r"`beta` must be above 0\..*beta=0"):
        training.PreferenceModel(make_model(), beta=0)
    with pytest.raises(ValueError, match=r"each of the 4 pairs.*Received: 3 margins"):
        load(np.zeros(3))
    with pytest.raises(ValueError, match=r"Unknown `order`.*order='up'"):
        load(np.zeros(4), order="up")
