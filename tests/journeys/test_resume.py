"""A run that is killed and goes on ends as one that was never stopped."""

import io
import re
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from rich.console import Console

from keras_gpt import LanguageModel
from keras_gpt.runs import RunConfig, read_log, read_result, train
from keras_gpt.runs.report import read_step_losses

TEXT = "".join(f"{i} bottles of beer on the wall, {i} bottles.\n" for i in range(300))

# 10 validations: far from its end when the first is done
CONFIG = RunConfig(
    tokenizer="characters",
    model={
        "embedding_dimension": 16,
        "num_layers": 1,
        "num_heads": 2,
        "context_length": 16,
        "dropout_rate": 0.2,
    },
    steps=40,
    evaluate_every=4,
    save_every=3,
    evaluation_batches=1,
    accumulation_steps=2,
    ema_momentum=0.9,
    remat=True,
    batch_size=4,
    learning_rate=1e-2,
    sample_tokens=0,
    # TensorFlow's XLA takes longer to compile than all else here
    jit_compile=False if keras.backend.backend() == "tensorflow" else None,
)
# only TensorFlow itself needs TensorFlow
PROGRAM = """
import json, os, sys
def end(event, names):
    if event == "import" and names[0] == os.environ.get("UNWANTED"):
        print("It loads", names[0], file=sys.stderr, flush=True)
        os._exit(3)
sys.addaudithook(end)
from keras_gpt.runs import RunConfig, train
train(RunConfig(**json.loads(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The folder of a run that was never stopped."""
    return run(corpus, tmp_path_factory.mktemp("whole") / "run")


def run(corpus, output, changes=(), **options):
    config = CONFIG.replaced(corpus=str(corpus), output=str(output), **dict(changes))
    train(config, **{"console": Console(file=io.StringIO(), width=200), **options})
    return output


def assert_same(resumed, whole):
    """Weights, optimizer, dropout seeds, best model and log, bit for bit."""
    for file, step in (("last.npz", CONFIG.steps), ("previous.npz", CONFIG.steps - 1)):
        with np.load(whole / file) as ours, np.load(resumed / file) as theirs:
            assert int(ours["step"]) == step
            assert ours.files == theirs.files
            for name in ours.files:
                np.testing.assert_array_equal(ours[name], theirs[name])
    best, other = LanguageModel.load(whole), LanguageModel.load(resumed)
    for a, b in zip(best.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    log, other = read_log(whole / "log.csv"), read_log(resumed / "log.csv")
    for name in ("epoch", "step", "learning_rate", "loss", "val_loss"):
        np.testing.assert_array_equal(log[name], other[name])
    losses, other = (read_step_losses(run / "steps.csv") for run in (whole, resumed))
    assert losses[:, 0].tolist() == list(range(1, CONFIG.steps + 1))
    np.testing.assert_array_equal(losses, other)
    result, other = read_result(whole), read_result(resumed)
    assert {**result, "seconds": 0} == {**other, "seconds": 0}


def test_a_killed_run_goes_on_as_if_it_never_was(corpus, whole, tmp_path, monkeypatch):
    if keras.backend.backend() != "tensorflow":
        monkeypatch.setenv("UNWANTED", "tensorflow")
    output = tmp_path / "run"
    config = CONFIG.replaced(corpus=str(corpus), output=str(output))
    fields = config.model_dump_json()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, fields], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    # at its first validation, or later
    while not (output / "model.weights.h5").is_file():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    with np.load(output / "last.npz") as state:
        assert int(state["step"]) < CONFIG.steps
    assert not (output / "result.json").exists()
    assert_same(run(corpus, output, resume=True), whole)


class Interrupting(io.StringIO):
    """A terminal at which somebody presses Ctrl-C when a text appears."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def write(self, text):
        if self.text in text:
            raise KeyboardInterrupt
        return super().write(text)


def test_a_run_goes_on_from_the_state_before_a_damaged_one(corpus, whole, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    content = bytearray((output / "last.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (output / "last.npz").write_bytes(content)
    console = Console(file=io.StringIO(), width=200)
    run(corpus, output, resume=True, console=console)
    assert re.search(
        r"Warning: \S+last\.npz is missing or damaged\. .*previous\.npz\.\n"
        r"(.*\n)*.*going on at step 39",
        console.file.getvalue(),
    )
    assert (output / "last.npz").read_bytes() != content
    assert_same(output, whole)


def test_a_run_killed_at_its_first_validation_starts_anew(corpus, whole, tmp_path):
    output = tmp_path / "run"
    changes = {"save_every": "9min"}
    with pytest.raises(KeyboardInterrupt):
        run(corpus, output, changes, console=Console(file=Interrupting("step      4")))
    # the bar speaks when model and log are written, and the state is not
    assert (output / "model.weights.h5").is_file()
    assert read_log(output / "log.csv")["step"].tolist() == [4]
    assert not list(output.glob("*.npz"))
    assert_same(run(corpus, output, resume=True), whole)


@pytest.mark.every_backend
def test_a_run_told_to_stop_anywhere_goes_on_exactly(
    corpus, whole, tmp_path, signalled
):
    output = tmp_path / "run"
    screen = io.StringIO()

    def state():
        with np.load(output / "last.npz") as arrays:
            return int(arrays["step"])

    # before the first validation, amid the accumulation of the first step
    with signalled(signal.SIGTERM, 1), pytest.raises(SystemExit) as raised:
        run(corpus, output, console=Console(file=screen, width=200))
    assert raised.value.code == 0
    stopped = f"Stopped at step 1 of 40: the run in {output} goes on with --resume."
    assert screen.getvalue().splitlines()[-1] == stopped
    assert state() == 1
    # at a validation, which then is done: 8 batches an epoch
    with signalled(signal.SIGINT, 6), pytest.raises(KeyboardInterrupt):
        run(corpus, output, resume=True)
    assert state() == 4
    assert read_log(output / "log.csv")["step"].tolist() == [4]
    # amid the third epoch, and in the rest of it
    with signalled(signal.SIGINT, 11), pytest.raises(KeyboardInterrupt):
        run(corpus, output, resume=True)
    assert state() == 10
    with signalled(signal.SIGINT, 1), pytest.raises(KeyboardInterrupt):
        run(corpus, output, resume=True)
    assert state() == 11
    # all that the run is, is in its folder
    train(RunConfig(output=str(output)), resume=True)
    assert_same(output, whole)


def test_a_run_that_goes_on_stops_early_where_one_never_stopped_does(
    corpus, tmp_path, signalled
):
    # a rate of 1e-12 changes nothing, so no validation is better than the first
    changes = {"learning_rate": 1e-12, "early_stopping": 3, "evaluate_every": 1}
    whole = run(corpus, tmp_path / "whole", changes)
    log = read_log(whole / "log.csv")["val_loss"]
    assert len(log) < CONFIG.steps
    output = tmp_path / "run"
    with signalled(signal.SIGINT, 6), pytest.raises(KeyboardInterrupt):
        run(corpus, output, changes)
    assert len(read_log(output / "log.csv")["val_loss"]) == 3
    run(corpus, output, changes, resume=True)
    np.testing.assert_array_equal(read_log(output / "log.csv")["val_loss"], log)
    # it is over
    state = (output / "last.npz").read_bytes()
    run(corpus, output, changes, resume=True)
    assert (output / "last.npz").read_bytes() == state
    np.testing.assert_array_equal(read_log(output / "log.csv")["val_loss"], log)


def test_a_finished_run_resumes_to_itself(corpus, whole):
    before = {path: path.read_bytes() for path in whole.glob("*.npz")}
    run(corpus, whole, resume=True)
    assert {path: path.read_bytes() for path in whole.glob("*.npz")} == before
    assert_same(whole, whole)
