import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt import GPT, GPTConfig

SIZES = {
    "vocab_size": 23,
    "context_length": 32,
    "embedding_dimension": 16,
    "num_layers": 2,
    "num_heads": 4,
}
VARIANTS = {
    "gpt2": {"activation": "gelu_tanh"},
    "llama": {
        "num_kv_heads": 2,
        "position_embedding": "rotary",
        "normalization": "rms_norm",
        "activation": "swiglu",
        "use_bias": False,
        "tie_embeddings": False,
        "qk_norm": True,
        "sliding_window": 5,
    },
    "packed": {"document_separator_id": 0, "activation": "relu_squared"},
    # small enough for every text of 3 tokens to be tried
    "tiny": {"vocab_size": 4, "context_length": 4, "num_layers": 1},
}


@pytest.fixture(scope="session")
def models():
    """A function that makes a model of a variant, once for all tests.

    Its weights are large enough for greedy text not to repeat one token.
    """
    made = {}

    def get(variant):
        if variant not in made:
            keras.utils.set_random_seed(0)
            made[variant] = make(variant)
        return made[variant]

    return get


def make(variant):
    model = GPT(GPTConfig(**{**SIZES, **VARIANTS[variant]}))
    random = np.random.default_rng(2)
    for variable in model.trainable_variables:
        values = random.normal(scale=0.4, size=variable.shape)
        if variable.path.endswith(("/gamma", "/scale")):
            values = 1 + values / 2
        variable.assign(values.astype("float32"))
    return model


@pytest.fixture(scope="session")
def next_logits():
    """A function: float64 logits `(rows, v)` after each text, by the whole model.

    Texts are padded on the right to the context and read eight at a time, so that one
    shape serves all.
    """

    def compute(model, texts):
        padded = np.zeros((-(-len(texts) // 8) * 8, model.config.context_length), int)
        for row, text in enumerate(texts):
            padded[row, : len(text)] = text
        parts = np.split(padded, len(padded) // 8) if texts else []
        logits = [ops.convert_to_numpy(model(part)) for part in parts]
        ends = [len(text) - 1 for text in texts]
        logits = np.concatenate(logits)[np.arange(len(texts)), ends]
        return logits.astype("float64")

    return compute
