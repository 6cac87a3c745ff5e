import io
import math
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from rich.console import Console

from keras_gpt import training
from keras_gpt.training.events import read_samples

TOKENS_PER_BATCH = 4 * 8


def fit(model, batch, callbacks, *, epochs=2, validate=True):
    """Train on two batches of 4 rows an epoch."""
    return model.fit(
        *batch,
        batch_size=4,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        validation_data=batch if validate else None,
        validation_batch_size=4,
        callbacks=callbacks,
    )


@pytest.fixture
def model(compile_model, make_model):
    model = make_model()
    compile_model(model, 1e-2, total_steps=10, warmup_steps=4)
    return model


def logs_of(history):
    """The logs of the last epoch."""
    return {name: values[-1] for name, values in history.history.items()}


@pytest.mark.every_backend
def test_throughput_adds_step_rate_and_speed(model, batch):
    pause = 0.02
    callbacks = [
        training.callbacks.Throughput(
            TOKENS_PER_BATCH, flops_per_token=10, peak_flops=1e9
        ),
        keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs: time.sleep(pause)
        ),
    ]
    start = time.perf_counter()
    logs = logs_of(fit(model, batch, callbacks))
    seconds = time.perf_counter() - start
    assert logs["step"] == 4
    assert logs["learning_rate"] == pytest.approx(1e-2, rel=1e-6)  # float32
    # two batches in the last epoch, none faster than the pause
    assert 2 * TOKENS_PER_BATCH / seconds < logs["tokens_per_second"]
    assert logs["tokens_per_second"] < TOKENS_PER_BATCH / pause
    assert logs["utilisation"] == logs["tokens_per_second"] * 10 / 1e9


def test_throughput_leaves_out_compilation_and_validation(model):
    throughput = training.callbacks.Throughput(TOKENS_PER_BATCH)
    throughput.set_model(model)
    throughput.on_train_begin()
    throughput.on_epoch_begin(0)
    assert throughput.tokens_per_second is None
    time.sleep(0.3)  # the first batch compiles
    throughput.on_train_batch_end(0)
    assert throughput.tokens_per_second is None
    throughput.on_train_batch_end(1)
    throughput.on_train_batch_end(2)
    time.sleep(0.3)  # validation
    logs = {}
    throughput.on_epoch_end(0, logs)
    assert logs["tokens_per_second"] > 2 * TOKENS_PER_BATCH / 0.3
    assert "utilisation" not in logs


@pytest.mark.every_backend
def test_throughput_counts_steps_of_the_optimizer_not_batches(
    compile_model, make_model, batch
):
    model = make_model(dtype="mixed_float16")  # loss scaling wraps the optimizer
    compile_model(model, 1e-2, total_steps=10, warmup_steps=4, accumulation_steps=2)
    throughput = training.callbacks.Throughput(TOKENS_PER_BATCH)
    logs = logs_of(fit(model, batch, [throughput], epochs=1, validate=False))
    # half-precision gradients of the first batches may overflow while the scale sinks
    assert logs["step"] == 1
    assert logs["learning_rate"] == pytest.approx(4e-3, rel=1e-6)  # float32


def test_peak_flops_are_those_of_a_computer():
    # from a phone's core to well beyond the fastest accelerator
    assert 1e8 < training.callbacks.measure_peak_flops("float32") < 1e17


def test_bits_per_byte_divides_by_the_bytes_of_the_text():
    logs = {"loss": 4 * math.log(2), "val_loss": math.log(2)}
    # a token that stands for 2 bytes and costs 4 bits: 2 bits for each byte
    training.callbacks.BitsPerByte(tokens_per_byte=0.5).on_epoch_end(0, logs)
    assert logs["bits_per_byte"] == pytest.approx(2)
    assert logs["val_bits_per_byte"] == pytest.approx(0.5)
    logs = {"loss": 1.0}
    training.callbacks.BitsPerByte(0.5).on_epoch_end(0, logs)
    assert set(logs) == {"loss", "bits_per_byte"}


@pytest.mark.every_backend
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_files(
    compile_model, make_model, model, batch, tmp_path
):
    weight = model.trainable_variables[0]

    def break_third_epoch(epoch, logs):
        if epoch == 2:
            weight.assign(np.full(weight.shape, np.nan, "float32"))

    good = []
    stop = training.callbacks.StopOnNonFiniteLoss()
    history = fit(
        model,
        batch,
        [
            keras.callbacks.LambdaCallback(on_epoch_begin=break_third_epoch),
            stop,
            training.callbacks.SaveState(tmp_path / "state.npz", 2),
            training.callbacks.SaveBest(lambda: good.append(model.get_weights())),
        ],
        epochs=9,
    )
    assert stop.stopped
    assert len(history.history["loss"]) == 3
    assert np.isnan(history.history["loss"][-1])
    other = make_model(1)
    compile_model(other, 1e-2, total_steps=10, warmup_steps=4)
    assert training.load_state(other, tmp_path / "state.npz") == 4
    assert len(good) == 2
    for saved, best in zip(other.get_weights(), good[-1], strict=True):
        assert np.isfinite(saved).all()
        np.testing.assert_array_equal(saved, best)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_stops_too(model, value):
    stop = training.callbacks.StopOnNonFiniteLoss()
    stop.set_model(model)
    model.stop_training = False
    stop.on_epoch_end(0, {"loss": 1.0, "val_loss": 2.0})
    assert not stop.stopped
    assert not model.stop_training
    stop.on_epoch_end(1, {"loss": 1.0, "val_loss": value})
    assert stop.stopped
    assert model.stop_training


def test_only_a_lower_validation_loss_is_saved():
    saved = []
    epoch = SimpleNamespace(number=0)
    best = training.callbacks.SaveBest(
        lambda: saved.append(epoch.number), losses=[5.0, 3.5]
    )
    for loss in [4.0, 3.0, 3.0, math.nan, 2.0, 2.5]:
        best.on_test_end({"loss": loss})
        epoch.number += 1
    best.on_test_end({})
    assert saved == [1, 4]
    assert not best.is_over


def test_validations_in_vain_are_counted_over_a_stop(model):
    losses = [3.0, 2.0, 2.5, 2.0, 1.0, 1.5, 1.5]
    for before in range(len(losses) + 1):
        best = training.callbacks.SaveBest(
            lambda: None, patience=2, losses=losses[:before]
        )
        best.set_model(model)
        model.stop_training = False
        for epoch, loss in enumerate(losses[before:], before):
            assert best.is_over == (epoch == 4)
            if best.is_over:
                break
            best.on_test_end({"loss": loss})
            best.on_epoch_end(epoch)
            assert model.stop_training == best.is_over
        if before < 4:
            assert best.is_over


def test_the_loss_of_a_few_steps_is_the_mean_since_it_was_told_last(model):
    # of two batches a step and five steps an epoch
    losses = np.random.default_rng(0).uniform(1, 9, size=(2, 10))
    told = {}
    callback = training.callbacks.StepLosses(
        told.__setitem__, 2, 5, accumulation_steps=2
    )
    callback.set_model(model)
    for epoch in range(2):
        callback.on_epoch_begin(epoch)
        for batch in range(10):
            callback.on_train_batch_begin(batch)
            mean = losses[epoch, : batch + 1].mean()  # as Keras has it
            callback.on_train_batch_end(batch, {"loss": mean})
    steps = {2: losses[0, :4], 4: losses[0, 4:8], 5: losses[0, 8:]}
    steps |= {6: losses[1, :2], 8: losses[1, 2:6], 10: losses[1, 6:]}
    assert told == pytest.approx({step: part.mean() for step, part in steps.items()})


def read_events(directory):
    """{run: [(step, tag, value), ...]} of all events, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    found = {}
    for path in directory.rglob("events.*"):
        events = list(EventFileLoader(str(path)).Load())
        assert events[0].file_version == "brain.Event:2"
        assert all(abs(event.wall_time - time.time()) < 600 for event in events)
        found[path.parent.relative_to(directory).as_posix()] = [
            (event.step, value.tag, tensor_util.make_ndarray(value.tensor))
            for event in events
            for value in event.summary.value
        ]
    return found


@pytest.mark.every_backend
def test_tensorboard_reads_the_events(model, batch, tmp_path):
    samples = iter(["once upon", "two\nlines"])
    picture = (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x01\x02\x00\x00\x00\x03\x08..."
    )
    events = training.callbacks.EventLog(
        tmp_path / "events" / "mine",
        sample=lambda: next(samples),
        picture=lambda: picture,
        hyperparameters={"learning_rate": 1e-2, "model.num_layers": 1},
    )
    callbacks = [
        training.callbacks.Throughput(
            TOKENS_PER_BATCH, flops_per_token=10, peak_flops=1e9
        ),
        training.callbacks.BitsPerByte(0.5),
        training.callbacks.StepLosses(events.write_loss, 1, 2),
        events,
    ]
    history = fit(model, batch, callbacks).history
    found = read_events(tmp_path / "events")
    assert found.keys() == {"mine", "mine/train", "mine/validation"}
    tags = {
        ("mine/validation", "loss"): "val_loss",
        ("mine/train", "loss/bits_per_byte"): "bits_per_byte",
        ("mine/validation", "loss/bits_per_byte"): "val_bits_per_byte",
        ("mine/train", "optimizer/learning_rate"): "learning_rate",
        ("mine/train", "speed/tokens_per_second"): "tokens_per_second",
        ("mine/train", "speed/utilisation"): "utilisation",
    }
    losses = ("mine/train", "loss")
    pairs = {(run, tag) for run, rows in found.items() for _, tag, _ in rows}
    scalars = {pair for pair in pairs if pair[0] != "mine"}
    kinds = ("norm", "embedding", "attention", "feed_forward", "all")
    others = {
        f"{name}_norm/{kind}" for name in ("update", "gradient") for kind in kinds
    }
    others.add("memory/process_GB")
    assert scalars == {*tags, losses, *(("mine/train", name) for name in others)}

    def points(run, tag):
        return [(step, value) for step, t, value in found[run] if t == tag]

    for pair, name in tags.items():
        steps, values = zip(*points(*pair), strict=True)
        assert steps == (2, 4), pair
        # float32 on disk
        assert np.array(values) == pytest.approx(history[name], rel=1e-6), pair
    steps, values = zip(*points(*losses), strict=True)
    assert steps == (1, 2, 3, 4)
    means = np.reshape(values, (2, 2)).mean(axis=1)
    assert means == pytest.approx(history["loss"], rel=1e-5)
    texts = [(step, text.item()) for step, text in points("mine", "sample")]
    assert texts == [(2, b"    once upon"), (4, b"    two\n    lines")]
    read = read_samples(tmp_path / "events")
    assert read == [(2, "once upon"), (4, "two\nlines")]
    for step, image in points("mine", "attention"):
        assert step in (2, 4)
        assert image.tolist() == [b"258", b"3", picture]
    assert (0, "_hparams_/session_start_info") in {row[:2] for row in found["mine"]}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_norms_of_the_last_step_are_those_of_its_update_and_gradient(
    make_model, batch, tmp_path, optimizer
):
    ids, targets = (part[:4] for part in batch)
    model = make_model()
    options = {"optimizer": optimizer, "weight_decay": 0.0, "clip_norm": None}
    training.compile_model(model, 1e-2, **options)
    fit(model, (ids, targets), [], validate=False, epochs=2)
    before = [np.array(v) for v in map(keras.ops.convert_to_numpy, model.weights)]
    twin = make_model()
    twin.set_weights(model.get_weights())
    twin.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    events = training.callbacks.EventLog(tmp_path / "mine")
    fit(model, (ids, targets), [events], validate=False, epochs=1)
    fit(twin, (ids, targets), [], validate=False, epochs=1)

    def norm(new, kind):
        pairs = zip(model.weights, before, new.weights, strict=True)
        parts = [
            np.sum((np.array(keras.ops.convert_to_numpy(after)) - old) ** 2)
            for v, old, after in pairs
            if kind == "all" or kind in v.path
        ]
        return np.sqrt(np.sum(parts))

    points = {tag: value for _, tag, value in read_events(tmp_path)["mine/train"]}
    for kind in ("all", "embedding", "feed_forward/"):
        tag = kind.rstrip("/")
        # sums in float32, and weights that are large beside what is taken from them
        expected = pytest.approx(norm(model, kind), rel=1e-4)
        assert points[f"update_norm/{tag}"] == expected
        expected = pytest.approx(norm(twin, kind), rel=1e-3)
        assert points[f"gradient_norm/{tag}"] == expected


def test_the_training_loss_of_an_epoch_is_noted_where_none_within_it_was(
    model, tmp_path
):
    events = training.callbacks.EventLog(tmp_path)
    events.set_model(model)
    events.on_train_begin()
    events.on_epoch_end(0, {"loss": 2.0, "step": 4})
    events.write_loss(6, 1.0)
    events.write_loss(8, 0.5)
    events.on_epoch_end(1, {"loss": 0.75, "step": 8})
    events.on_train_end()
    found = [row for row in read_events(tmp_path)["train"] if row[1] == "loss"]
    assert found == [(4, "loss", 2.0), (6, "loss", 1.0), (8, "loss", 0.5)]


@pytest.mark.parametrize("is_compiled", [True, False])
def test_the_time_that_is_left_counts_validations_but_not_what_compiles(
    monkeypatch, is_compiled
):
    clock = 0
    monkeypatch.setattr(training.callbacks.time, "perf_counter", lambda: clock)
    file = io.StringIO()
    bar = training.callbacks.ProgressBar(
        6,
        validation_batches=4,
        console=Console(file=file, force_terminal=True, width=100),
    )
    bar.set_params({"epochs": 3})
    bar.set_model(SimpleNamespace(jit_compile=is_compiled))

    def shown():
        [task] = bar._progress.tasks
        return task.fields["figures"], task.fields["left"]

    bar.on_train_begin()
    assert shown() == ("compiling the first step" if is_compiled else "", "")
    lefts = []
    for epoch in range(3):
        bar.on_epoch_begin(epoch)
        for batch in range(2):
            clock += 100 if epoch == batch == 0 else 3
            bar.on_train_batch_end(batch)
            lefts.append(shown()[1])
        bar.on_test_begin()
        first = epoch == 0 and is_compiled
        assert shown()[0] == (
            "compiling the first validation" if first else "validating 0/4"
        )
        for batch in range(4):
            clock += 50 if epoch == batch == 0 else 1
            bar.on_test_batch_end(batch)
        assert shown()[0] == "validating 4/4"
        bar.on_test_end()
        assert shown()[0] == "writing results"
        clock += 30 if epoch == 0 else 0  # a sample
        bar.on_epoch_end(epoch)
    bar.on_train_end()
    # 6 steps of 3 s and 12 of validation of 1 s; the first step isn't known
    seconds = [None, 24, 17, 14, 7, 4]
    assert lefts == ["" if s is None else f"0:00:{s:02} left" for s in seconds]
    assert shown()[1] == "0:00:00 left"


def test_the_bar_prints_what_the_logs_say(model, batch):
    file = io.StringIO()
    console = Console(file=file, width=100)
    throughput = training.callbacks.Throughput(TOKENS_PER_BATCH)
    bar = training.callbacks.ProgressBar(
        8, first_batch=4, throughput=throughput, console=console, refresh_seconds=0
    )
    history = fit(
        model, batch, [throughput, training.callbacks.BitsPerByte(0.5), bar]
    ).history
    *epochs, last = file.getvalue().splitlines()
    assert len(epochs) == 2
    for i, line in enumerate(epochs):
        assert line == (
            f"step {history['step'][i]:>6}  train {history['loss'][i]:.4f}  "
            f"validation {history['val_loss'][i]:.4f}  "
            f"{history['val_bits_per_byte'][i]:.3f} bits/byte  "
            f"{history['tokens_per_second'][i]:,.0f} tokens/s"
        )
    assert last.startswith("training ")
    assert "8/8" in last
    assert f"loss {history['loss'][-1]:.3f}" in last
    assert last.endswith("left")
