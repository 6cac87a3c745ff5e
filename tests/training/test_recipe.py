import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt import training
from keras_gpt.training import WarmupSchedule
from keras_gpt.training.muon import Muon

WARMUP, TOTAL, HIGHEST, FINAL = 10, 110, 1e-3, 2e-4
STEPS = [0, 1, 9, 10, 11, 50, 60, 89, 90, 91, 109, 110, 111, 5000]


def expected_rate(schedule, step):
    """The learning rate by its definition, in float64."""
    if step < WARMUP:
        return HIGHEST * (step + 1) / (WARMUP + 1)
    progress = min((step - WARMUP) / (TOTAL - WARMUP), 1)
    if schedule == "cosine":
        return FINAL + (HIGHEST - FINAL) * (1 + np.cos(np.pi * progress)) / 2
    if schedule == "wsd":  # the last fifth decays in a straight line
        return np.interp(progress, [0.8, 1], [HIGHEST, FINAL])
    return HIGHEST


@pytest.mark.every_backend
@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedule_equals_its_definition(schedule):
    made = WarmupSchedule(
        HIGHEST,
        TOTAL,
        warmup_steps=WARMUP,
        schedule=schedule,
        final_learning_rate=FINAL,
    )
    rates = [float(made(step)) for step in STEPS]
    expected = [expected_rate(schedule, step) for step in STEPS]
    # float32 has 7 digits; a few are lost in 1 + cos near its zero
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_schedule_without_warmup_starts_at_the_highest_and_ends_at_a_tenth():
    made = WarmupSchedule(HIGHEST, TOTAL)
    # float32
    assert float(made(0)) == pytest.approx(HIGHEST, rel=1e-6)
    assert float(made(TOTAL)) == pytest.approx(HIGHEST / 10, rel=1e-6)


def test_schedule_serializes():
    made = WarmupSchedule(
        HIGHEST, TOTAL, warmup_steps=3, schedule="wsd", decay_fraction=0.5
    )
    again = keras.optimizers.schedules.deserialize(
        keras.optimizers.schedules.serialize(made)
    )
    assert isinstance(again, WarmupSchedule)
    assert again.get_config() == made.get_config()
    assert [float(again(s)) for s in STEPS] == [float(made(s)) for s in STEPS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "linear"}, "`schedule` must be one of .*Received: 'linear'"),
        ({"warmup_steps": 100}, "`warmup_steps`.*warmup_steps=100, total_steps=100"),
        ({"warmup_steps": -1}, "`warmup_steps` must be .* at least 0. Received: -1"),
        ({"decay_fraction": 0}, "`decay_fraction` must be above 0.*Received: 0"),
        ({"learning_rate": "fast"}, "`learning_rate` must be above 0.*'fast'"),
    ],
)
def test_schedule_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        WarmupSchedule(**{"learning_rate": 1e-3, "total_steps": 100, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"recipe": "quick"},
            r"`recipe` must be one of \('classic', 'fast'\).*'quick'",
        ),
        ({"optimizer": "sgd"}, "`optimizer` must be one of .*Received: 'sgd'"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0. Received: 0.0"),
        ({"learning_rate": -1.0}, "`learning_rate` must be above 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be above 0"),
        ({"weight_decay": -0.1}, "`weight_decay` must be at least 0. Received: -0.1"),
        ({"accumulation_steps": 0}, "`accumulation_steps`.*Received: 0"),
        ({"accumulation_steps": 1.5}, "`accumulation_steps`.*Received: 1.5"),
        ({"total_steps": 5, "warmup_steps": 5}, "`warmup_steps`"),
        ({"total_steps": 0}, "`total_steps` must be a positive integer.*Received: 0"),
        ({"beta_1": 2}, "`beta_1` must be at least 0 and below 1. Received: 2"),
        ({"beta_2": -0.1}, "`beta_2` must be at least 0 and below 1"),
        ({"clip_norm": -1}, "`clip_norm` must be above 0, or None. Received: -1"),
        ({"ema_momentum": 1.0}, "`ema_momentum` must be .*below 1, or None"),
        ({"final_learning_rate": -1}, "`final_learning_rate` must be at least 0"),
        ({"total_steps": 9, "schedule": "linear"}, "`schedule` must be one of"),
    ],
)
def test_compile_model_refuses_bad_arguments(
    compile_model, make_model, arguments, message
):
    with pytest.raises(ValueError, match=message):
        compile_model(make_model(), **arguments)


def test_a_schedule_without_its_length_is_refused(make_model):
    model = make_model()
    for options, named in (
        ({"warmup_steps": 3, "schedule": "wsd"}, "`warmup_steps`, `schedule`"),
        ({"schedule": "cosine"}, "`schedule`"),
        ({"final_learning_rate": 0.0}, "`final_learning_rate`"),
    ):
        with pytest.raises(ValueError, match=f"^{named} need `total_steps`.*give it"):
            training.compile_model(model, **options)
    assert not model.compiled


def test_an_unknown_argument_is_named_with_what_was_meant():
    for theirs, ours in (("lr", "learning_rate"), ("grad_clip", "clip_norm")):
        with pytest.raises(TypeError, match=f"'{theirs}'. Did you mean '{ours}'"):
            training.compile_model(None, **{theirs: 1.0})


@pytest.mark.parametrize(
    ("given", "optimizer", "rates"),
    [
        ({}, "AdamW", [1e-3, 1e-4]),
        ({"recipe": "fast"}, "Muon", [5e-3, 0]),
        ({"recipe": "fast", "final_learning_rate": 1e-3}, "Muon", [5e-3, 1e-3]),
        ({"recipe": "fast", "optimizer": "adamw"}, "AdamW", [5e-3, 0]),
    ],
)
def test_a_recipe_says_what_is_not_given(make_model, given, optimizer, rates):
    model = make_model()
    training.compile_model(model, total_steps=10, **given)
    assert isinstance(model.optimizer, getattr(keras.optimizers, optimizer))
    rate = model.optimizer.get_config()["learning_rate"]
    schedule = keras.saving.deserialize_keras_object(rate)
    # float32
    np.testing.assert_allclose([schedule(0), schedule(10)], rates, rtol=1e-6)


def random_gradients(model, scale, seed):
    random = np.random.default_rng(seed)
    return [
        (scale * random.normal(size=variable.shape)).astype("float32")
        for variable in model.trainable_variables
    ]


def apply(model, gradients):
    model.optimizer.apply(
        [ops.convert_to_tensor(gradient) for gradient in gradients],
        model.trainable_variables,
    )


def weights(model):
    return [
        np.array(ops.convert_to_numpy(variable))
        for variable in model.trainable_variables
    ]


def numpy_adamw(values, all_gradients, rates, *, clip_norm, weight_decay):
    """AdamW with decay on matrices alone, in float64.

    Epsilon is the one of Kingma and Ba, end of section 2: beside the root of the
    second moment before its bias is corrected. So does Keras.
    """
    beta_1, beta_2, epsilon = 0.9, 0.95, 1e-8
    values = [value.astype("float64") for value in values]
    first = [np.zeros_like(value) for value in values]
    second = [np.zeros_like(value) for value in values]
    for step, (gradients, rate) in enumerate(
        zip(all_gradients, rates, strict=True), start=1
    ):
        norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in gradients))
        scale = 1.0 if clip_norm is None else min(1.0, clip_norm / norm)
        for i, gradient in enumerate(gradients):
            gradient = gradient * scale
            first[i] = beta_1 * first[i] + (1 - beta_1) * gradient
            second[i] = beta_2 * second[i] + (1 - beta_2) * gradient**2
            if values[i].ndim == 2:
                values[i] = values[i] * (1 - rate * weight_decay)
            alpha = rate * np.sqrt(1 - beta_2**step) / (1 - beta_1**step)
            values[i] = values[i] - alpha * first[i] / (np.sqrt(second[i]) + epsilon)
    return values


@pytest.mark.every_backend
@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_steps_equal_adamw_by_numpy(compile_model, make_model, clip_norm):
    model = make_model()
    compile_model(
        model, 1e-2, total_steps=10, warmup_steps=4, weight_decay=0.3,
        clip_norm=clip_norm,
    )  # fmt: skip
    # norms below and above the clip, so that clipping changes the mean of them
    all_gradients = [
        random_gradients(model, scale, seed)
        for seed, scale in enumerate([1e-3, 10.0, 0.1, 1.0])
    ]
    rates = [2e-3, 4e-3, 6e-3, 8e-3]  # linear warm-up over 4 steps
    expected = numpy_adamw(
        weights(model), all_gradients, rates, clip_norm=clip_norm, weight_decay=0.3
    )
    for gradients in all_gradients:
        apply(model, gradients)
    for got, want in zip(weights(model), expected, strict=True):
        # float32 beside float64; updates are of order 1e-2
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.every_backend
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("weight_decay", [0.5, 0.0])
def test_only_matrices_decay(compile_model, make_model, optimizer, weight_decay):
    model = make_model(tie_embeddings=False, qk_norm=True)
    compile_model(model, 0.1, optimizer=optimizer, weight_decay=weight_decay)
    for variable in model.trainable_variables:
        variable.assign(ops.ones(variable.shape))
    apply(model, [np.zeros(v.shape, "float32") for v in model.trainable_variables])
    shapes = {variable.ndim for variable in model.trainable_variables}
    assert shapes == {1, 2}
    for variable, value in zip(model.trainable_variables, weights(model), strict=True):
        decay = 0.1 * weight_decay if value.ndim == 2 else 0.0
        # float32
        np.testing.assert_allclose(value, 1 - decay, rtol=1e-6, err_msg=variable.path)


def gradients_of_first_step(model):
    """What reached Adam, clipped: after one step its mean holds a tenth of it."""
    assert int(model.optimizer.iterations) == 1
    return {
        variable.path.split("/", 1)[1]: 10 * np.array(ops.convert_to_numpy(variable))
        for variable in model.optimizer.variables
        if "momentum" in variable.path
    }


def assert_same_gradients(left, right):
    """The weights' change would not do: Adam scales the rounding of tiny ones up."""
    assert left.keys() == right.keys()
    assert len(left) > 8
    norm = np.sqrt(sum((gradient**2).sum() for gradient in left.values()))
    assert norm == pytest.approx(0.5, rel=1e-4)  # clipped
    for path, gradient in left.items():
        # float32 sums in another order, beside a norm of 0.5
        np.testing.assert_allclose(right[path], gradient, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    "optimizer", [pytest.param("adamw", marks=pytest.mark.every_backend), "muon"]
)
def test_a_step_counts_tokens_however_its_batches_are_cut(
    make_model, compile_model, batch, optimizer
):
    # from 1 to 8 of each row's tokens count
    counted = np.arange(8) < np.array([[1], [8], [2], [1], [7], [3], [1], [5]])
    options = {"sample_weight": counted.astype("float32"), "verbose": 0}
    results, losses = [], []
    for accumulation_steps, batch_size in ((1, 8), (4, 2)):
        model = make_model()
        compile_model(
            model, 3e-4, optimizer=optimizer, accumulation_steps=accumulation_steps,
            clip_norm=None,
        )  # fmt: skip
        before = weights(model)
        options["batch_size"] = batch_size
        fitted = model.fit(*batch, epochs=4, shuffle=False, **options)
        results.append(weights(model))
        losses.append(fitted.history["loss"][0])
        losses.append(model.evaluate(*batch, **options))
    moved = [np.abs(a - b).max() for a, b in zip(before, results[0], strict=True)]
    assert max(moved) > 1e-3
    for got, want in zip(*results, strict=True):
        # float32 sums in another order; Adam makes much of small gradients
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    # means over tokens too; those of an epoch are from before its step
    np.testing.assert_allclose(losses[2:], losses[:2], rtol=1e-6)


def test_schedule_counts_steps_not_accumulated_batches(compile_model, make_model):
    model = make_model()
    compile_model(model, 1e-2, total_steps=10, warmup_steps=4, accumulation_steps=3)
    gradients = random_gradients(model, 0.1, 0)
    rates = []
    for step in range(3):
        for _ in range(3):
            apply(model, gradients)
        rates.append(float(ops.convert_to_numpy(model.optimizer.learning_rate)))
        assert int(model.optimizer.iterations) == step + 1
    # after each step the rate of the next: warm-up over 4 steps. float32
    np.testing.assert_allclose(rates, [4e-3, 6e-3, 8e-3], rtol=1e-6)


@pytest.mark.every_backend
def test_an_accumulated_step_equals_adamw_by_numpy(compile_model, make_model):
    model = make_model()
    compile_model(
        model, 1e-2, total_steps=10, warmup_steps=4, weight_decay=0.3,
        accumulation_steps=2,
    )  # fmt: skip
    halves = [random_gradients(model, 0.1, seed) for seed in range(4)]
    means = [
        [(a + b) / 2 for a, b in zip(*halves[i : i + 2], strict=True)] for i in (0, 2)
    ]
    expected = numpy_adamw(
        weights(model), means, [2e-3, 4e-3], clip_norm=1.0, weight_decay=0.3
    )
    for gradients in halves:
        apply(model, gradients)
    for got, want in zip(weights(model), expected, strict=True):
        # float32 beside float64; updates are of order 1e-2
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.every_backend
def test_fit_ends_with_the_average_of_the_weights(compile_model, make_model, batch):
    model = make_model()
    compile_model(model, 1e-2, ema_momentum=0.75)
    after_each_step = []
    model.fit(
        *batch,
        epochs=3,
        batch_size=8,
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: after_each_step.append(weights(model))
            )
        ],
    )
    for i, averaged in enumerate(weights(model)):
        first, second, third = (values[i] for values in after_each_step)
        expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
        assert not np.array_equal(third, averaged)
        # float32, values of order 0.1 and 1
        np.testing.assert_allclose(averaged, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.every_backend
def test_muon_orthogonalizes_the_matrices_of_blocks_alone(compile_model, make_model):
    model = make_model()
    compile_model(model, 1e-2, optimizer="muon", weight_decay=0.0)
    before = weights(model)
    gradients = random_gradients(model, 1.0, 0)
    apply(model, gradients)
    kinds = set()
    for variable, old, new in zip(
        model.trainable_variables, before, weights(model), strict=True
    ):
        update = new - old
        if variable.path.startswith("block") and update.ndim == 2:
            kinds.add("muon")
            values = np.linalg.svd(update, compute_uv=False)
            # five Newton-Schulz steps bring singular values to 0.7 ... 1.2 of one size
            assert values.max() / values.min() < 2, variable.path
        else:
            kinds.add("adamw")
            # Adam's first step is the sign of the gradient, less where that is near
            # epsilon, 1e-8, whose effect grows by 1 / sqrt(1 - beta_2)
            np.testing.assert_allclose(np.abs(update), 1e-2, rtol=5e-3)
    assert kinds == {"muon", "adamw"}


@pytest.mark.every_backend
@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_muon_orthogonalizes_as_keras_does(shape):
    x = np.random.default_rng(0).normal(size=shape)
    # singular values from 1 to 1e-5
    x = (x * np.logspace(0, -5, shape[1])).astype("float32")
    mine, theirs = (
        ops.convert_to_numpy(muon().zeropower_via_newtonschulz5(ops.array(x), steps=5))
        for muon in (Muon, keras.optimizers.Muon)
    )
    # float32: five steps multiply the rounding of small singular values by 3.4 ** 5
    np.testing.assert_allclose(mine, theirs, atol=1e-4)


def first_and_last_loss(model, batch, epochs):
    losses = model.fit(*batch, epochs=epochs, batch_size=8, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    return losses[0], losses[-1]


@pytest.mark.every_backend
def test_muon_trains(compile_model, make_model, batch):
    model = make_model()
    compile_model(model, 1e-2, optimizer="muon", total_steps=30, warmup_steps=3)
    first, last = first_and_last_loss(model, batch, 30)
    assert first == pytest.approx(np.log(11), abs=0.2)  # small weights: uniform
    assert last < first / 2


@pytest.mark.every_backend
def test_mixed_float16_trains_with_loss_scaling(compile_model, make_model, batch):
    model = make_model(dtype="mixed_float16")
    compile_model(model, 1e-2, total_steps=30, warmup_steps=3)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    first, last = first_and_last_loss(model, batch, 30)
    assert first == pytest.approx(np.log(11), abs=0.2)
    assert last < first / 2
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


@pytest.mark.every_backend
def test_targets_with_weight_0_do_not_count(make_model, compile_model, batch):
    token_ids, targets = batch
    sample_weight = np.ones((8, 8), "float32")
    sample_weight[:, 5:] = 0
    garbage = np.where(sample_weight > 0, targets, 7)
    losses, gradients = [], []
    for arguments in (
        (token_ids[:, :5], targets[:, :5]),
        (token_ids, garbage, sample_weight),
    ):
        model = make_model()
        compile_model(model, clip_norm=0.5)
        losses.append(float(model.train_on_batch(*arguments)))
        gradients.append(gradients_of_first_step(model))
    # float32 sums of other lengths
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert_same_gradients(*gradients)
