"""Training on several devices. JAX has four of them here: see conftest.py."""

import re

import jax
import keras
import numpy as np
import pytest

from keras_gpt import CharacterTokenizer, LanguageModel
from keras_gpt.training import (
    enable_lora,
    load_state,
    make_distribution,
    save_state,
)
from keras_gpt.training.devices import LAYOUTS
from keras_gpt.training.parts import load_parts, save_parts

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="needs JAX")
COUNTED = np.arange(8) < np.array([[1], [8], [2], [1], [7], [3], [1], [5]])
WIDE = {"embedding_dimension": 64, "num_heads": 4}


@pytest.fixture
def go_on(batch, compile_model):
    """A function: train a model on and tell what is seen of it."""

    def train(lm, state):
        compile_model(lm.model, 1e-2, accumulation_steps=2)
        load_state(lm.model, state)
        options = {"sample_weight": COUNTED.astype("float32"), "batch_size": 4}
        options["verbose"] = 0
        fitted = lm.model.fit(*batch, epochs=3, shuffle=False, **options)
        losses = [*fitted.history["loss"], lm.model.evaluate(*batch, **options)]
        return losses, lm.generate(["a", "bcd"], 6, seed=0)

    return train


def share_of_a_device(model):
    """How much of weights and optimizer state one of the devices holds."""
    values = [v.value for v in [*model.variables, *model.optimizer.variables]]
    first = [part.addressable_shards[0].data.nbytes for part in values]
    return sum(first) / sum(value.nbytes for value in values)


@on_jax
@pytest.mark.every_backend
def test_devices_compute_what_one_does(make_model, compile_model, go_on, tmp_path):
    alone = LanguageModel(make_model(**WIDE), CharacterTokenizer.train(["abcdefghij"]))
    compile_model(alone.model, 1e-2, accumulation_steps=2)
    alone.model.optimizer.build(alone.model.trainable_variables)
    alone.save(tmp_path / "model")
    save_state(alone.model, tmp_path / "state.npz", 0)
    losses, texts = go_on(alone, tmp_path / "state.npz")
    with make_distribution("fsdp:2,model:2").scope():
        lm = LanguageModel.load(tmp_path / "model")
        found = go_on(lm, tmp_path / "state.npz")
    # float32 sums in another order
    np.testing.assert_allclose(found[0], losses, rtol=1e-5)
    assert found[1] == texts
    assert share_of_a_device(lm.model) <= 0.3  # of 4


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"position_embedding": "rotary", "activation": "swiglu", "num_kv_heads": 1},
        {"tie_embeddings": False, "normalization": "rms_norm", "qk_norm": True},
    ],
)
def test_every_matrix_has_one_layout(make_model, fields):
    model = make_model(**fields)
    enable_lora(model, rank=2)
    matrices = [weight for weight in model.weights if len(weight.shape) == 2]
    assert len(matrices) >= 13
    for weight in matrices:
        found = [
            axes for path, axes in LAYOUTS.items() if re.fullmatch(path, weight.path)
        ]
        assert len(found) == 1, weight.path
        assert len(found[0]) == 2


@on_jax
@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (len(jax.devices()) + 1, "asks for .* where there are"),
        ("tensor:2", "must be 'all', a number"),
        ("data:2,fsdp:2", "must be 'all', a number"),
        ("fsdp:0", "must be 'all', a number"),
    ],
)
@pytest.mark.every_backend
def test_devices_that_are_not_there_are_refused(devices, words):
    with pytest.raises(ValueError, match=words):
        make_distribution(devices)


@on_jax
@pytest.mark.every_backend
def test_a_batch_that_devices_can_not_share_is_refused(make_model, compile_model):
    ids = np.ones((9, 8), "int32")
    with make_distribution("data:4").scope():
        model = make_model()
        compile_model(model, 1e-2)
        for data in ((ids[:6],), (ids[:9], ids[:9], 4)):
            with pytest.raises(ValueError, match=r"by 4 devices.*a batch of (6|1) "):
                model.fit(*data)


@on_jax
@pytest.mark.every_backend
def test_parts_are_read_on_other_devices_and_damage_is_told(make_model, tmp_path):
    def named(model):
        return {variable.path: variable for variable in model.variables}

    with make_distribution("fsdp:4").scope():
        cut = named(make_model())
        checksums = save_parts(tmp_path / "parts-1", cut)
    whole = named(make_model(seed=1))
    load_parts(tmp_path / "parts-1", whole, checksums)
    for path, variable in whole.items():
        np.testing.assert_array_equal(variable, cut[path])
    [*_, file] = (tmp_path / "parts-1").rglob("d/*")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="parts-1 is damaged"):
        load_parts(tmp_path / "parts-1", whole, checksums)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has them")
def test_other_backends_name_the_one_to_take():
    with pytest.raises(ValueError, match=r"need JAX.*devices='all'"):
        make_distribution()
