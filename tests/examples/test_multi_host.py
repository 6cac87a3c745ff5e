"""Training by two processes, each with its own devices."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_gpt
from keras_gpt import data, training

ROOT = Path(__file__).parents[2]
TEXT = "".join(f"{n} bottles of beer on the wall, {n} bottles.\n" for n in range(300))


def test_two_processes_train_what_one_does(tmp_path):
    (tmp_path / "corpus.txt").write_text(TEXT, encoding="utf-8")
    tokenizer = keras_gpt.CharacterTokenizer.train([TEXT])
    tokenizer.save(tmp_path / "tokenizer")
    data.prepare(tmp_path / "corpus.txt", tmp_path / "data", tokenizer)
    folders = ["--data", "data", "--tokenizer", "tokenizer", "--output", "model"]
    sizes = ["--batch-size", "8", "--length", "16", "--steps", "3"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    process = subprocess.run(
        ["bash", ROOT / "examples" / "multi_host" / "local.sh", *folders, *sizes],
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "PORT": str(port),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    [loss] = map(float, re.findall(r"loss: ([\d.]+)", process.stdout))

    keras.utils.set_random_seed(0)
    config = keras_gpt.GPTConfig.from_preset(
        "quickstart", vocab_size=tokenizer.vocab_size
    )
    model = keras_gpt.GPT(config)
    training.compile_model(model, 1e-3, total_steps=3, warmup_steps=0)
    batches = data.load_batches(tmp_path / "data", "train", 8, 16)
    fitted = model.fit(batches, steps_per_epoch=3, verbose=0)
    # printed to four digits; other backends sum in another order
    assert fitted.history["loss"] == [pytest.approx(loss, abs=2e-4)]
    saved = keras_gpt.LanguageModel.load(tmp_path / "model")
    ours = keras_gpt.LanguageModel(model, tokenizer)
    assert saved.evaluate(TEXT).loss == pytest.approx(ours.evaluate(TEXT).loss, 1e-4)
