import io
import json
import math

import keras
import numpy as np
import pytest
from rich.console import Console

from keras_gpt import LanguageModel, data, tokenizers
from keras_gpt.runs import (
    RunConfig,
    evaluate_validation,
    read_log,
    read_result,
    train,
    train_tokenizer,
)

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
    return RunConfig.from_dict({**fields, **changes})


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
        "tokenizer",
    }
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


def test_prepared_data_needs_its_own_tokenizer(corpus, tmp_path):
    config = make_config(corpus, tmp_path / "run", data=str(tmp_path / "data"))
    with pytest.raises(ValueError, match="tokenizer=FOLDER"):
        train(config)
    tokenizer = train_tokenizer("characters", str(corpus))
    data.prepare(corpus, tmp_path / "data", tokenizer, progress=False)
    other = tokenizers.CharacterTokenizer.train(["abc"], progress=False)
    other.save(tmp_path / "other")
    config.tokenizer = str(tmp_path / "other")
    with pytest.raises(ValueError, match="another tokenizer"):
        train(config)


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


def test_early_stopping_ends_a_run_that_no_longer_improves(corpus, tmp_path):
    # a rate of 1e-12 changes nothing, so no validation is better than the first
    config = make_config(
        corpus,
        tmp_path / "run",
        learning_rate=1e-12,
        steps=20,
        early_stopping=2,
        sample_tokens=0,
    )
    lm = train(config, console=Console(file=io.StringIO()))
    assert isinstance(lm, LanguageModel)
    assert len(read_log(tmp_path / "run" / "log.csv")["step"]) < 10
