import keras
import pytest

from keras_gpt import (
    GPT,
    BytePairTokenizer,
    CharacterTokenizer,
    GPTConfig,
    LanguageModel,
    SentencePieceTokenizer,
    backend,
)

TEXT = "Once upon a time, a cat sat on 12 mats; naïve café, 你好 мир! It's so. " * 30
CONTEXT_LENGTH = 24
ARCHITECTURES = {
    "gpt2": {"activation": "gelu_tanh", "document_separator_id": 0},
    "llama": {
        "num_kv_heads": 2,
        "position_embedding": "rotary",
        "normalization": "rms_norm",
        "activation": "swiglu",
        "use_bias": False,
        "tie_embeddings": False,
        "sliding_window": 9,
        "qk_norm": True,
    },
}
TOKENIZERS = {
    "characters": lambda: CharacterTokenizer.train(
        [TEXT], special_tokens=["<|endoftext|>"], progress=False
    ),
    "sentence_piece": lambda: SentencePieceTokenizer.train([TEXT], 320, progress=False),
    "byte_pairs": lambda: BytePairTokenizer.train([TEXT], 300, progress=False),
}


@pytest.fixture(autouse=True)
def without_xla(monkeypatch):
    """What exports are compared with needn't be compiled for long."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        monkeypatch.setattr(backend, "compile_function", lambda f, _: tf.function(f))


@pytest.fixture(scope="session")
def make_language_model():
    """A function that makes a model by the names of architecture and tokenizer."""

    def make(architecture="gpt2", tokenizer="byte_pairs", **options):
        keras.utils.set_random_seed(0)
        tokenizer = TOKENIZERS[tokenizer]()
        options = {**ARCHITECTURES[architecture], **options}
        if "document_separator_id" in options:
            options["document_separator_id"] = tokenizer.end_of_text_id
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size + 3,  # as where a vocabulary is padded
            context_length=CONTEXT_LENGTH,
            embedding_dimension=32,
            num_layers=2,
            num_heads=4,
            **options,
        )
        model = GPT(config)
        for weight in model.weights:
            if len(weight.shape) > 1:  # or greedy text would repeat one token
                weight.assign(weight * 8)
        return LanguageModel(model, tokenizer)

    return make
