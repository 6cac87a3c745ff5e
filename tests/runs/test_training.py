import io
import json
import math
import os
import re
import shutil
import time

import keras
import numpy as np
import pytest
from rich.console import Console

from keras_gpt import data, files, tokenizers
from keras_gpt.runs import (
    RunConfig,
    evaluate_validation,
    find_runs,
    plot_runs,
    read_log,
    read_result,
    read_status,
    train,
    train_tokenizer,
)
from keras_gpt.runs.overview import draw_runs
from keras_gpt.runs.report import draw_losses, read_step_losses

TEXT = "".join(f"{i} bottles of beer on the wall, {i} bottles.\n" for i in range(300))
MODEL = {
    "embedding_dimension": 16,
    "num_layers": 1,
    "num_heads": 2,
    "context_length": 16,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(TEXT)
    return path


def make_config(corpus, output, **changes):
    fields = {
        "corpus": str(corpus),
        "output": str(output),
        "tokenizer": "characters",
        "model": MODEL,
        "steps": 6,
        "evaluate_every": 2,
        "batch_size": 4,
        "sample_tokens": 4,
        # TensorFlow's XLA takes longer to compile than all else here
        "jit_compile": False if keras.backend.backend() == "tensorflow" else None,
    }
    return RunConfig(**{**fields, **changes})


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    console = Console(file=io.StringIO(), width=200)
    lm = train(make_config(corpus, output), console=console)
    return output, lm, console.file.getvalue()


@pytest.mark.every_backend
def test_a_run_leaves_all_it_needs_to_be_repeated_and_looked_at(finished):
    output, _, printed = finished
    names = {path.name for path in output.iterdir()}
    assert names >= {
        "config.json",
        "data",
        "environment.json",
        "events",
        "last.npz",
        "log.csv",
        "loss.png",
        "model.weights.h5",
        "result.json",
        "run.yaml",
        "steps.csv",
        "tokenizer",
    }
    parts = {path.parent for path in (output / "events").rglob("events.*")}
    events = output / "events" / "run"
    assert parts == {events, events / "train", events / "validation"}
    assert not [name for name in names if "partial" in name]
    again = RunConfig.from_yaml(output / "run.yaml", [])
    assert (again.steps, again.model) == (6, MODEL)
    assert json.loads((output / "environment.json").read_text())["keras"]
    assert "validation" in printed
    assert "tokens/s" in printed


def test_the_log_has_a_row_for_each_validation_with_its_step(finished):
    log = read_log(finished[0] / "log.csv")
    assert log["step"].tolist() == [2, 4, 6]
    assert log["val_loss"][-1] < log["val_loss"][0]
    # one character of this text is one byte
    np.testing.assert_allclose(
        log["val_bits_per_byte"], log["val_loss"] / math.log(2), rtol=1e-6
    )


def test_the_loss_of_each_step_of_a_short_run_is_kept(finished):
    steps, losses = read_step_losses(finished[0] / "steps.csv").T
    assert steps.tolist() == [1, 2, 3, 4, 5, 6]
    means = losses.reshape(3, 2).mean(axis=1)
    # Keras's means are float32
    np.testing.assert_allclose(means, read_log(finished[0] / "log.csv")["loss"], 1e-5)
    assert losses[0] == pytest.approx(math.log(finished[1].tokenizer.vocab_size), 0.02)


def test_the_curve_has_all_points_the_start_and_bits_per_byte(finished):
    output, lm, _ = finished
    start = math.log(lm.tokenizer.vocab_size)
    figure = draw_losses(output, about="tiny", start=start, tokens_per_byte=1.0)
    [axes] = figure.axes
    training, knows_nothing, validation = axes.lines
    assert training.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert validation.get_xdata().tolist() == [2, 4, 6]
    assert set(knows_nothing.get_ydata()) == {start}
    [second] = axes.child_axes
    assert second.get_ylabel() == "bits per byte"
    figure.draw_without_rendering()
    assert second.get_ylim() == pytest.approx(np.array(axes.get_ylim()) / math.log(2))
    assert axes.get_title("left") == "run"
    [about] = axes.texts
    assert re.fullmatch(r"tiny · [\d,]+ tokens/s", about.get_text())


@pytest.mark.every_backend
def test_the_saved_model_has_the_validation_loss_of_the_result(finished):
    output, lm, _ = finished
    result = read_result(output)
    evaluation = evaluate_validation(output, lm)
    # float32 sums in another order
    assert evaluation.loss == pytest.approx(result["validation_loss"], rel=1e-5)
    assert result["validation_loss"] == min(read_log(output / "log.csv")["val_loss"])


def test_a_run_is_not_overwritten(finished, corpus):
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(make_config(corpus, finished[0]))


def test_there_must_be_a_run_to_resume(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run in"):
        train(make_config(corpus, tmp_path / "none"), resume=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate from 0.001 to 0.5. Leave that out"),
        ({"batch_size": 5, "seed": 3}, "seed from 0 to 3, batch_size from 4 to 5"),
        ({"schedule": "constant"}, "schedule from 'cosine' to 'constant'"),
        ({"tokenizer": "byte_pair"}, "tokenizer from 'characters' to 'byte_pair'"),
        ({"evaluate_every": 1}, "evaluate_every from 2 to 1"),
        ({"model": {**MODEL, "num_layers": 2}}, "model from {"),
        ({"steps": 4}, "`steps` must be at least 6, which are done"),
    ],
)
def test_a_run_never_goes_on_as_another(finished, changes, message):
    output = finished[0]
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.*")}
    with pytest.raises(ValueError, match=re.escape(message)):
        train(RunConfig(output=str(output), **changes), resume=True)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.*")} == before


def test_a_run_is_lengthened(corpus, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    common = {"schedule": "constant", "warmup_steps": 1, "sample_tokens": 0}
    whole = make_config(corpus, tmp_path / "whole", **common)
    expected = train(whole, console=console).model.get_weights()
    short = whole.replaced(output=str(tmp_path / "short"), steps=4)
    train(short, console=console)
    longer = RunConfig(output=short.output, steps=6)
    found = train(longer, resume=True, console=console).model.get_weights()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert read_log(tmp_path / "short" / "log.csv")["step"].tolist() == [2, 4, 6]
    kept = RunConfig.from_yaml(tmp_path / "short" / "run.yaml")
    assert kept == whole.planned().replaced(output=short.output)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.yaml", b"steps: [", "run.yaml is not valid YAML"),
        ("run.yaml", b"\x93\x00", "run.yaml is not valid YAML"),
        ("run.yaml", b"stesp: 3", "Did you mean 'steps'"),
        ("*.npz", None, "last.npz is missing"),
        ("*.npz", b"", r"last.npz can't be read.*before it, .*previous.npz, fails too"),
        ("log.csv", b"epoch,loss\n", "log.csv is damaged"),
        ("log.csv", b"null", "log.csv is damaged"),
        ("log.csv", b"\x93\x00,\n\xff", "log.csv is damaged"),
        ("log.csv", None, "log.csv"),
        ("data/metadata.json", b"null", "metadata.json"),
    ],
)
def test_a_damaged_run_does_not_go_on_and_says_why(
    finished, tmp_path, name, content, message
):
    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    paths = list(output.glob(name))
    for path in paths:
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
    kept = (output / "run.yaml").read_bytes()
    with pytest.raises((ValueError, OSError), match=message) as raised:
        train(RunConfig(output=str(output), steps=8), resume=True)
    assert "\n" not in str(raised.value)
    assert (output / "run.yaml").read_bytes() == kept
    assert [path.read_bytes() for path in paths if path.exists()] == [
        content for _ in paths if content is not None
    ]


def test_a_result_that_is_none_is_named(tmp_path):
    (tmp_path / "result.json").write_text("null")
    with pytest.raises(ValueError, match=r"result\.json is no run's result.*None"):
        read_result(tmp_path)


def test_a_run_of_an_older_version_goes_on(finished, tmp_path):
    # its state held no means of an epoch, its folder no losses of steps
    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    with np.load(output / "last.npz") as state:
        arrays = {name: state[name] for name in state if "metric" not in name}
    np.savez(output / "last.npz", **arrays)
    (output / "steps.csv").unlink()
    (output / "previous.npz").unlink()
    config = RunConfig(output=str(output), steps=8)
    train(config, resume=True, console=Console(file=io.StringIO()))
    assert read_log(output / "log.csv")["step"].tolist() == [2, 4, 6, 8]
    assert read_step_losses(output / "steps.csv")[:, 0].tolist() == [7, 8]


def test_a_folder_is_for_one_run_at_a_time(corpus, finished, tmp_path):
    for output, resume in ((tmp_path / "new", False), (finished[0], True)):
        with (
            files.locked(output),
            pytest.raises(BlockingIOError, match="another process"),
        ):
            train(make_config(corpus, output), resume=resume)
    assert not (tmp_path / "new" / "run.yaml").exists()


def test_a_saved_model_is_not_overwritten(corpus, finished, tmp_path):
    finished[1].save(tmp_path)
    with pytest.raises(FileExistsError, match="already holds a run or a model"):
        train(make_config(corpus, tmp_path))


def test_prepared_data_needs_its_own_tokenizer(corpus, tmp_path):
    config = make_config(corpus, tmp_path / "run", data=str(tmp_path / "data"))
    with pytest.raises(ValueError, match="tokenizer=FOLDER"):
        train(config)
    tokenizer = train_tokenizer("characters", str(corpus))
    data.prepare(corpus, tmp_path / "data", tokenizer, progress=False)
    other = tokenizers.CharacterTokenizer.train(["abc"], progress=False)
    other.save(tmp_path / "other")
    with pytest.raises(ValueError, match="another tokenizer"):
        train(config.replaced(tokenizer=str(tmp_path / "other")))
    assert not (tmp_path / "run" / "run.yaml").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer": "bpe"}, r"`tokenizer`.*'bpe'. Did you mean 'byte_pair'"),
        ({"packing": "documents"}, "`packing` .*end-of-text.*packing=windows"),
        ({"model": {**MODEL, "vocab_size": 3}}, "model vocab_size=3"),
        ({"model": {**MODEL, "document_separator_id": 99}}, "`document_separator_id`"),
    ],
)
def test_what_does_not_fit_is_found_before_the_corpus_is_tokenized(
    corpus, tmp_path, fields, message
):
    with pytest.raises(ValueError, match=message):
        train(make_config(corpus, tmp_path, **fields))
    assert not (tmp_path / "data").exists()


def test_averaged_weights_are_the_ones_evaluated_and_saved(corpus, tmp_path):
    config = make_config(
        corpus, tmp_path / "run", ema_momentum=0.9, steps=4, sample_tokens=0
    )
    lm = train(config, console=Console(file=io.StringIO()))
    result = read_result(tmp_path / "run")
    # float32 sums in another order
    loss = evaluate_validation(tmp_path / "run", lm).loss
    assert loss == pytest.approx(result["validation_loss"], rel=1e-5)
    # an average over the run lags behind the weights that were trained
    assert result["validation_loss"] > result["last_training_loss"]


def test_whole_documents_are_packed_and_told_apart(tmp_path):
    path = tmp_path / "lines.jsonl"
    lines = [json.dumps({"text": line}) for line in TEXT.splitlines()]
    path.write_text("\n".join(lines))
    config = make_config(
        path,
        tmp_path / "run",
        tokenizer="byte_pair",
        vocab_size=300,
        packing="documents",
        steps=2,
        model={**MODEL, "context_length": 32},
    )
    lm = train(config, console=Console(file=io.StringIO()))
    assert lm.model.config.document_separator_id == lm.tokenizer.end_of_text_id
    assert math.isfinite(read_result(tmp_path / "run")["validation_loss"])


def test_a_loss_that_explodes_stops_the_run_and_keeps_the_last_good_model(
    corpus, tmp_path
):
    config = make_config(
        corpus,
        tmp_path / "run",
        learning_rate=1e38,
        clip_norm=None,
        warmup_steps=0,
        optimizer="adamw",
    )
    with pytest.raises(ValueError, match=r"infinite or NaN.*learning_rate"):
        train(config, console=Console(file=io.StringIO()))
    assert not (tmp_path / "run" / "result.json").exists()


def test_what_a_run_is_at_is_read_from_its_folder(finished, tmp_path):
    log = read_log(finished[0] / "log.csv")
    status = read_status(finished[0])
    assert (status.state, status.step, status.steps) == ("done", 6, 6)
    assert status.best_loss == min(log["val_loss"])
    assert status.tokens_per_second == log["tokens_per_second"][-1]
    assert status.seconds_left is None

    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    shutil.copy(output / "previous.npz", output / "last.npz")
    status = read_status(output)
    assert (status.state, status.step, status.seconds_left) == ("stopped", 4, None)
    # 4 steps in 40 s since it was started, and the last of them 10 s ago
    (output / "steps.csv").write_text("step,loss\n4,2.5\n")
    (output / "previous.npz").unlink()
    now = time.time()
    for name, age in {"run.yaml": 50, "last.npz": 10, "steps.csv": 10}.items():
        os.utime(output / name, (now - age, now - age))
    with files.locked(output):
        status = read_status(output)
        assert (status.state, status.step) == ("running", 4)
        # two more, as fast, less the time since
        assert status.seconds_left == pytest.approx(20 - 10, abs=2)
        # it goes on from there, and has noted nothing yet
        os.utime(output / "run.yaml")
        assert read_status(output).seconds_left is None
    (output / "log.csv").unlink()
    (output / "last.npz").write_bytes(b"")
    for name in ("run.yaml", "result.json"):
        (output / name).write_text("null")
    status = read_status(output)
    assert (status.state, status.step, status.steps) == ("stopped", 0, None)
    assert status.best_loss is None


def test_runs_are_found_however_deep_and_drawn_into_one_picture(finished, tmp_path):
    for name in ("b", "deep/a", ".hidden"):
        shutil.copytree(finished[0], tmp_path / name)
    assert find_runs(finished[0]) == [finished[0]]
    found = find_runs(tmp_path)
    assert found == [tmp_path / "b", tmp_path / "deep" / "a"]
    with pytest.raises(FileNotFoundError, match=r"There is no run in .*events"):
        find_runs(finished[0] / "events")

    [axes] = draw_runs(found, in_bits=True).axes
    assert axes.get_ylabel() == "bits per byte"
    log = read_log(finished[0] / "log.csv")
    best = min(log["val_bits_per_byte"])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"b: {best:.3f}", f"a: {best:.3f}"]
    thin, thick, *_ = axes.lines
    assert thin.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(thick.get_ydata(), log["val_bits_per_byte"], rtol=1e-6)

    with pytest.raises(ValueError, match=r"ends in \.png or \.svg\. Received: a\.jpg"):
        plot_runs(found, "a.jpg")
    (found[0] / "log.csv").unlink()
    with pytest.raises(ValueError, match=r"b has no losses to draw.*Leave that"):
        plot_runs(found, tmp_path / "a.png")
