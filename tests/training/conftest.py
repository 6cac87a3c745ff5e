import keras
import numpy as np
import pytest

from keras_gpt import GPT, GPTConfig, training

SIZES = {
    "vocab_size": 11,
    "context_length": 8,
    "embedding_dimension": 16,
    "num_layers": 1,
    "num_heads": 2,
}


@pytest.fixture
def make_model():
    """A function: a tiny GPT with the weights of a seed."""

    def make(seed=0, *, dtype=None, **fields):
        keras.utils.set_random_seed(seed)
        return GPT(GPTConfig(**{**SIZES, **fields}), dtype=dtype)

    return make


@pytest.fixture
def compile_model():
    """`compile_model`, without XLA on TensorFlow, where that takes 10 s a model."""

    def compile_quickly(model, *args, **kwargs):
        if keras.backend.backend() == "tensorflow":
            kwargs = {"jit_compile": False, **kwargs}
        training.compile_model(model, *args, **kwargs)

    return compile_quickly


@pytest.fixture
def batch():
    """Token ids and targets `(8, 8)` of a sequence that can be learned."""
    ids = (np.arange(9) * 3 + np.arange(8)[:, None]) % SIZES["vocab_size"]
    return ids[:, :-1].astype("int32"), ids[:, 1:].astype("int32")
