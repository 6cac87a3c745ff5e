"""Training by two processes, each with its own devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_gpt import LanguageModel, runs

ROOT = Path(__file__).parents[2]
TEXT = "".join(f"{n} bottles of beer on the wall, {n} bottles.\n" for n in range(9))
SIZES = {"embedding_dimension": 8, "num_layers": 1, "num_heads": 2}
RUN = f"""
corpus: corpus.txt
tokenizer: characters
model: {{context_length: 16, {", ".join(f"{k}: {v}" for k, v in SIZES.items())}}}
steps: 3
batch_size: 8
sample_tokens: 0
"""


def test_two_processes_train_what_one_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text(TEXT, encoding="utf-8")
    Path("run.yaml").write_text(RUN, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    script = ROOT / "examples" / "multi_host" / "local.sh"
    arguments = ["train", "--config", "run.yaml", "--output", "two"]
    process = subprocess.run(
        ["bash", script, *arguments, "--devices", "fsdp:2"],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PORT": str(port),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # it compiles faster
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("best_step") == 1
    alone = runs.train(runs.RunConfig.from_yaml("run.yaml", output="one"))
    logs = [runs.read_log(f"{name}/log.csv") for name in ("one", "two")]
    for name in ("loss", "val_loss"):  # other backends sum in another order
        np.testing.assert_allclose(logs[1][name], logs[0][name], atol=1e-5)
    saved = LanguageModel.load("two")
    assert saved.evaluate(TEXT).loss == pytest.approx(alone.evaluate(TEXT).loss, 1e-5)
    [parts] = Path("two").glob("parts-*")  # of the state, which each wrote its own of
    assert {path.name for path in parts.glob("ocdbt.*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }
