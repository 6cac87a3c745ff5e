import signal

import pytest

from keras_gpt import runs

OVER = {"learning_rate": "1e-3:1e-2:log", "model.num_layers": "1,2"}


@pytest.fixture
def config(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{n} and {n + 1}\n" for n in range(300)))
    sizes = {"context_length": 8, "embedding_dimension": 8, "num_heads": 2}
    return runs.RunConfig(
        corpus=str(corpus),
        tokenizer="characters",
        model={**sizes, "num_layers": 1},
        steps=4,
        batch_size=2,
        evaluate_every=4,
        evaluation_batches=1,
        sample_tokens=0,
    )


def found(trials):
    return [(trial.folder.name, trial.values, trial.loss) for trial in trials]


def test_a_stopped_sweep_ends_as_one_that_never_was(config, tmp_path, signalled):
    whole = runs.sweep(config, OVER, tmp_path / "whole", trials=2)
    assert [trial.loss for trial in whole] == sorted(trial.loss for trial in whole)
    stopped = tmp_path / "stopped"
    with signalled(signal.SIGINT, 6), pytest.raises(KeyboardInterrupt):
        runs.sweep(config, OVER, stopped, trials=2)
    assert not (stopped / runs.TRIALS_FILE).exists()
    assert found(runs.sweep(config, OVER, stopped, trials=2)) == found(whole)
    name, *rows = (stopped / runs.TRIALS_FILE).read_text().splitlines()
    assert name == "run,learning_rate,model.num_layers,validation_loss"
    assert len(rows) == 2
    assert (stopped / runs.PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    assert runs.sweep(config, OVER, stopped, trials=9, minutes=0) == runs.sweep(
        config, OVER, stopped, trials=3
    )


def test_lists_are_gone_through_and_what_fails_comes_last(config, tmp_path):
    config = config.replaced(steps=2, evaluate_every=2)
    over = {"batch_size": "2,4", "model.num_heads": "1,3"}  # 3 doesn't divide 8
    trials = runs.sweep(config, over, tmp_path / "sweep")
    values = {tuple(trial.values.values()) for trial in trials}
    assert values == {(2, 1), (2, 3), (4, 1), (4, 3)}
    assert [trial.values["model.num_heads"] for trial in trials] == [1, 1, 3, 3]
    assert [trial.loss is None for trial in trials] == [False, False, True, True]
    with pytest.raises(ValueError, match="has a sweep of other runs or fields"):
        runs.sweep(config.replaced(seed=1), over, tmp_path / "sweep")


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({}, "must name a field"),
        ({"learning_rate": "1:0.1"}, "must be values such as 2,4,6, or a range"),
        ({"learning_rate": "0:1:log"}, "must be values such as 2,4,6, or a range"),
        ({"learning_rate": "-1,1"}, "learning_rate=-1"),
        ({"lr": "0.1,1"}, "Did you mean 'learning_rate'"),
        ({"model.n_layer": "1,2"}, "Did you mean 'num_layers'"),
        ({"modl.num_layers": "1,2"}, "Did you mean 'model.num_layers'"),
    ],
)
def test_what_cannot_be_swept_over_is_named(config, tmp_path, over, message):
    with pytest.raises(ValueError, match=message):
        runs.sweep(config, over, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
