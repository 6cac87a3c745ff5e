import re
from dataclasses import replace

import keras
import pytest
from keras import ops

from keras_gpt import FAST_ARCHITECTURE, GPT, GPTConfig, runs, training

CONFIG = GPTConfig(
    vocab_size=50,
    context_length=16,
    embedding_dimension=32,
    num_layers=2,
    num_heads=4,
)
OTHER = replace(CONFIG, num_kv_heads=2, tie_embeddings=False, **FAST_ARCHITECTURE)


def size(variables):
    """Bytes of the float32 ones, without what counts steps and tokens."""
    return sum(4 * ops.size(v) for v in variables if v.dtype == "float32" and v.shape)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (CONFIG, {}),
        (OTHER, {"optimizer": "muon"}),
        (CONFIG, {"accumulation_steps": 2, "ema_momentum": 0.9}),
        (OTHER, {"optimizer": "muon", "accumulation_steps": 2}),
    ],
)
def test_weights_and_optimizer_are_told_exactly_before_a_model_is_made(config, options):
    memory = runs.estimate_memory(config, 4, dtype="float32", **options)
    model = GPT(config)
    assert memory == runs.estimate_memory(model, 4, **options)
    training.compile_model(model, 1e-3, **options)
    model.optimizer.build(model.trainable_variables)
    assert memory.weights == memory.gradients == size(model.variables)
    assert memory.optimizer == size(model.optimizer.variables)


def test_only_what_is_trained_has_gradients_and_moments():
    model = GPT(CONFIG)
    whole = runs.estimate_memory(model, 4)
    training.enable_lora(model, 2)
    memory = runs.estimate_memory(model, 4)
    assert memory.gradients == size(model.trainable_variables)
    assert memory.optimizer == 2 * memory.gradients < whole.optimizer / 4
    assert memory.weights > whole.weights


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="asks PyTorch's autograd"
)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("config", [CONFIG, OTHER])
@pytest.mark.parametrize("dropout_rate", [0.0, 0.1])
def test_activations_are_what_is_kept_for_gradients(config, dropout_rate, dtype):
    import torch

    config = replace(config, dropout_rate=dropout_rate, context_length=128)
    model = GPT(config, dtype=dtype)
    weights = {v.value.untyped_storage().data_ptr() for v in model.variables}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros((8, 128), dtype=torch.int32), training=True)
    found = sum(size for at, (size, _) in kept.items() if at not in weights)
    estimate = runs.estimate_memory(model, 8).activations
    # small things, such as variances and masks, and what is held while they are made
    assert found * 0.95 < estimate < found * 1.15


@pytest.mark.every_backend
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="several devices need JAX")
def test_each_device_has_its_part_of_what_is_cut():
    whole = runs.estimate_memory(CONFIG, 8)
    with training.make_distribution("fsdp:4").scope():
        part = runs.estimate_memory(CONFIG, 8)
    assert part.weights < 1.2 / 4 * whole.weights
    assert part.activations == pytest.approx(whole.activations / 4)


def test_a_run_that_cannot_fit_is_refused_with_what_would(tmp_path):
    output = tmp_path / "run"
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("abc " * 50)
    config = runs.RunConfig(
        corpus=str(corpus),
        output=str(output),
        tokenizer="characters",
        model={**CONFIG.to_dict(), "vocab_size": 4},
        batch_size=2**30,
        steps=2,
    )
    with pytest.raises(ValueError, match="which is the same step") as error:
        runs.train(config)
    said = str(error.value)
    rows, batches = re.search(
        r"batch_size=(\d+) accumulation_steps=(\d+)", said
    ).groups()
    assert int(rows) * int(batches) == 2**30
    assert not (output / "model.weights.h5").exists()
    config = config.replaced(
        output=str(tmp_path / "other"),
        batch_size=4,
        model={**CONFIG.to_dict(), "vocab_size": 4, "embedding_dimension": 2**20},
    )
    with pytest.raises(ValueError, match="and a smaller model") as error:
        runs.train(config)
    assert "Try" not in str(error.value)
