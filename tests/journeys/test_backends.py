"""What one backend saves another reads, and computes the same numbers from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt import GPT, BytePairTokenizer, GPTConfig, LanguageModel, training

# PyTorch is the reference, which starts soonest
pytestmark = [
    pytest.mark.every_backend,
    pytest.mark.skipif(
        keras.backend.backend() == "torch", reason="the others are compared with it"
    ),
]

TEXT = "the cat sat on the mat, the cat ate. café 猫🐈!\n"
PROMPTS = ["the cat", "", "🐈 on the mat", "sat"]
VARIANTS = {
    "gpt2": {"activation": "gelu_tanh"},
    "llama": {
        "num_kv_heads": 1,
        "position_embedding": "rotary",
        "normalization": "rms_norm",
        "activation": "swiglu",
        "use_bias": False,
        "tie_embeddings": False,
    },
}

# Reads a saved model, writes what it computes, and saves it again from its backend
PROGRAM = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_backends import compute
for folder in map(Path, sys.argv[2:]):
    compute(folder, folder / "again")
"""


def compute(folder, again):
    """Logits, greedy and sampled text, scores and training losses, as JSON."""
    lm = LanguageModel.load(folder)
    ids = np.arange(48).reshape(4, 12) * 5 % lm.model.config.vocab_size
    results = {
        "logits": ops.convert_to_numpy(lm.model(ids)).tolist(),
        "greedy": [c.ids for c in lm.complete(PROMPTS, 16, temperature=0)],
        "sampled": lm.generate(PROMPTS, 16, temperature=0.9, top_p=0.95, seed=3),
        "score": lm.score(TEXT[:30]).tolist(),
    }
    lm.save(again)
    lm.model.save(again / "model.keras")
    training.compile_model(lm.model, 1e-2, total_steps=10, warmup_steps=2)
    results["losses"] = [
        float(lm.model.train_on_batch(ids[:, :-1], ids[:, 1:])) for _ in range(5)
    ]
    (again / "results.json").write_text(json.dumps(results))
    return results


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """For each variant the folder that this backend wrote; the other one's in it."""
    tokenizer = BytePairTokenizer.train([TEXT] * 9, 280, progress=False)
    folders = {}
    for name, fields in VARIANTS.items():
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size,
            context_length=32,
            embedding_dimension=16,
            num_layers=1,
            num_heads=2,
            **fields,
        )
        model = GPT(config)
        random = np.random.default_rng(4)
        for variable in model.trainable_variables:
            values = random.normal(scale=0.3, size=variable.shape)
            variable.assign(values.astype("float32"))
        folders[name] = tmp_path_factory.mktemp("saved") / name
        LanguageModel(model, tokenizer).save(folders[name])
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM,
            Path(__file__).parent,
            *folders.values(),
        ],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return folders


@pytest.mark.parametrize("variant", VARIANTS)
def test_backends_compute_the_same_numbers(folders, variant, tmp_path):
    folder = folders[variant]
    theirs = json.loads((folder / "again" / "results.json").read_text())
    ours = compute(folder, tmp_path / "again")
    logits = np.array(theirs["logits"])
    # float32, sums in another order, beside the largest logit
    scale = np.abs(logits).max()
    np.testing.assert_allclose(ours["logits"], logits, atol=1e-5 * scale, rtol=0)
    assert ours["greedy"] == theirs["greedy"]
    assert len({tuple(ids) for ids in ours["greedy"]}) > 1
    assert ours["sampled"] == theirs["sampled"]
    np.testing.assert_allclose(ours["score"], theirs["score"], atol=1e-4)
    # Adam scales rounding up where a gradient is tiny
    np.testing.assert_allclose(ours["losses"], theirs["losses"], atol=1e-3, rtol=0)
    assert ours["losses"][-1] < ours["losses"][0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_that_another_backend_saved_is_the_same(folders, variant):
    ours = LanguageModel.load(folders[variant])
    theirs = LanguageModel.load(folders[variant] / "again")
    assert theirs.model.config == ours.model.config
    whole = keras.saving.load_model(folders[variant] / "again" / "model.keras")
    for model in (theirs.model, whole):
        weights = model.get_weights()
        for a, b in zip(ours.model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)
