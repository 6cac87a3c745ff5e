"""The graph of an exported model, run by OpenVINO instead of TensorFlow."""

import keras
import numpy as np
import pytest

from keras_gpt import generate
from tests.export.conftest import CONTEXT_LENGTH, MAX_NEW_TOKENS

openvino = pytest.importorskip("openvino", reason="pip install openvino")
pytestmark = [
    pytest.mark.every_backend,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="tested on TensorFlow"
    ),
]

# ragged, and one that outgrows the context
PROMPTS = [[5], [1, 2, 3], list(range(CONTEXT_LENGTH)), [9, 9]]


@pytest.fixture(params=[("gpt2", "byte_pairs"), ("llama", "characters")], ids="-".join)
def compiled(request, export_once, tmp_path, monkeypatch):
    """A language model and its `generate_ids`, compiled by OpenVINO."""
    import tensorflow as tf

    # or converting reports to its makers, and waits for their server
    monkeypatch.setenv("CI", "true")
    lm, folder = export_once(*request.param)
    # what is converted reads TensorFlow's own memory for as long as it isn't written
    loaded = tf.saved_model.load(folder)
    model = openvino.convert_model(loaded.signatures["generate_ids"])
    openvino.save_model(model, tmp_path / "docs.xml", compress_to_fp16=False)
    # it takes bfloat16 by itself where the processor multiplies that faster
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return lm, openvino.compile_model(tmp_path / "docs.xml", "CPU", options)


def test_openvino_makes_the_tokens_that_generate_makes(compiled):
    lm, model = compiled
    rows = len(PROMPTS)
    width = max(map(len, PROMPTS))
    prompts = {
        "token_ids": np.array([p + [0] * (width - len(p)) for p in PROMPTS], "int32"),
        "lengths": np.array([len(p) for p in PROMPTS], "int32"),
    }

    def ask(temperature, top_k, top_p, seed):
        outputs = model(
            {
                **prompts,
                "max_new_tokens": np.full(rows, MAX_NEW_TOKENS, "int32"),
                "temperature": np.full(rows, temperature, "float32"),
                "top_k": np.full(rows, top_k, "int32"),
                "top_p": np.full(rows, top_p, "float32"),
                "seed": np.arange(seed, seed + rows, dtype="int32"),
            }
        )
        # an input is named token_ids too
        ids, counts = outputs["token_ids_1"], outputs["num_tokens"]
        return [row[:n].tolist() for row, n in zip(ids, counts, strict=True)]

    def wanted(**controls):
        return generate(
            lm.model, PROMPTS, MAX_NEW_TOKENS, stop_ids=lm.stop_ids, **controls
        )

    assert ask(0.0, 0, 1.0, 0) == wanted(temperature=0)
    sampled = wanted(temperature=1.0, top_k=20, top_p=0.9, seed=3)
    assert ask(1.0, 20, 0.9, 3) == sampled
