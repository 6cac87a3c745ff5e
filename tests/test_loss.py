"""The loss from hidden states, and what is computed twice to save memory."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt import GPT, GPTConfig, backend, loss, training
from keras_gpt.layers import FeedForward

SIZES = {"context_length": 8, "embedding_dimension": 16, "num_layers": 1}
IDS = np.random.default_rng(0).integers(50, size=(4, 9))
TARGETS = np.roll(IDS, -1)[:, :7]
WEIGHTS = np.random.default_rng(1).integers(2, size=(4, 7)).astype("float32")


def array(x):
    return np.array(ops.convert_to_numpy(x), "float64")


def make_model(dtype=None, **fields):
    keras.utils.set_random_seed(0)
    config = GPTConfig(vocab_size=50, num_heads=2, **SIZES, **fields)
    return GPT(config, dtype=dtype)


def step(model, sample_weight=None, **options):
    """Loss and gradients of a batch, and its loss in validation."""
    # others compile longer than they run
    jit = keras.backend.backend() == "jax"
    options = {"run_eagerly": not jit, "jit_compile": jit, **options}
    model.compile(keras.optimizers.SGD(1.0), **options)
    batch = IDS[:, :7], TARGETS, sample_weight
    validation = model.test_on_batch(*batch)
    before = [array(v) for v in model.trainable_variables]
    training = model.train_on_batch(*batch)
    after = [array(v) for v in model.trainable_variables]
    losses = [float(np.ravel(values)[0]) for values in (training, validation)]
    return losses, [old - new for old, new in zip(before, after, strict=True)]


def quantized_with_lora():
    model = make_model()
    model.quantize("int8")
    training.enable_lora(model, rank=2)
    return model


@pytest.mark.parametrize(
    ("make", "sample_weight"),
    [
        pytest.param(make_model, WEIGHTS, marks=pytest.mark.every_backend),
        (lambda: make_model(tie_embeddings=False), None),
        (quantized_with_lora, WEIGHTS[:, :1]),
    ],
)
def test_the_loss_from_hidden_states_is_that_from_logits(
    make, sample_weight, monkeypatch
):
    # the accuracy needs logits
    losses, gradients = step(make(), sample_weight, metrics=["accuracy"])
    model, sizes = make(), []
    project = model.embedding.project
    monkeypatch.setattr(
        model.embedding,
        "project",
        lambda x: sizes.append(tuple(x.shape[:-1])) or project(x),
    )
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 4 * 2 * 50)
    others, other_gradients = step(model, sample_weight)
    assert (4, 2) in sizes  # of 7 tokens
    assert sizes.count((4, 7)) <= 1  # where Keras builds the loss, of symbols
    np.testing.assert_allclose(others, losses, rtol=1e-6)
    largest = max(np.abs(gradient).max() for gradient in gradients)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        # float32 sums in another order
        np.testing.assert_allclose(other, gradient, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_no_worse_from_hidden_states(dtype, monkeypatch):
    _, exact = step(make_model(), WEIGHTS)

    def error(gradients):
        pairs = zip(gradients, exact, strict=True)
        return sum(np.square(ours - theirs).sum() for ours, theirs in pairs)

    losses, gradients = step(make_model(dtype), WEIGHTS)
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 4 * 2 * 50)
    others, other_gradients = step(make_model(dtype), WEIGHTS)
    # products of other shapes, each rounded: the mean of 14 losses
    np.testing.assert_allclose(others, losses, rtol=1e-4)
    # what each of 4 chunks adds to the matrix is rounded, where it was once
    assert error(other_gradients) < 2 * error(gradients)


@pytest.mark.every_backend
def test_remat_gives_the_same_gradients_with_the_same_dropout():
    losses, gradients = step(make_model(dropout_rate=0.5))
    model = make_model(dropout_rate=0.5)
    others, other_gradients = step(model, remat=True)
    # float32, in which a compiler may order sums otherwise
    np.testing.assert_allclose(others, losses, rtol=1e-6)
    largest = max(np.abs(gradient).max() for gradient in gradients)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        np.testing.assert_allclose(other, gradient, rtol=0, atol=1e-6 * largest)
    seeds = [array(v) for v in model.non_trainable_variables if "int" in v.dtype]
    assert {seed[1] for seed in seeds} == {1}  # drawn from once


@pytest.mark.every_backend
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="asks XLA for the memory")
def test_what_remat_computes_twice_takes_no_memory():
    import jax

    networks = [FeedForward(512, activation="relu_squared") for _ in range(8)]
    x = np.ones((1, 512, 8), "float32")
    for network in networks:
        network.build(x.shape)

    def memory(remat):
        def loss(x):
            for network in networks:
                x = backend.rematerialize(network, network, x) if remat else network(x)
            return ops.sum(x)

        compiled = jax.jit(jax.grad(loss)).lower(x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(remat=True) < memory(remat=False) / 3
