import functools
import itertools

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
from keras_gpt.tokenizers import ChatTemplate
from tests.export.templates import SMOLLM, special_tokens

TEXT = "Once upon a time, a cat sat on 12 mats; naïve café, 你好 мир! It's so. " * 30
CONTEXT_LENGTH = 24
MAX_NEW_TOKENS = 12
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
    "chat": lambda: BytePairTokenizer.train(
        [TEXT], 320, special_tokens=special_tokens("smollm"), progress=False
    ),
}
CHAT_CONTEXT_LENGTH = 160


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
        about = {}
        if tokenizer == "chat":
            options = {
                "context_length": CHAT_CONTEXT_LENGTH,
                "num_layers": 1,
                "sliding_window": None,  # the answer depends on all of the prompt
                **options,
            }
            about["chat_template"] = ChatTemplate(SMOLLM)
            about["tasks"] = {
                "complete": {"instruction": "Go on."},
                "summarize": {"instruction": "Be brief."},
                "translate": {"languages": [["en", "de"], ["de", "en"]]},
            }
        tokenizer = TOKENIZERS[tokenizer]()
        options = {**ARCHITECTURES[architecture], **options}
        if "document_separator_id" in options:
            options["document_separator_id"] = tokenizer.end_of_text_id
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size + 3,  # as where a vocabulary is padded
            embedding_dimension=32,
            num_heads=4,
            **{"num_layers": 2, "context_length": CONTEXT_LENGTH, **options},
        )
        model = GPT(config)
        for weight in model.weights:
            if len(weight.shape) > 1:  # or greedy text would repeat one token
                weight.assign(weight * 8)
        return LanguageModel(model, tokenizer, **about)

    return make


@pytest.fixture(scope="session")
def export_once(make_language_model, tmp_path_factory):
    """A function that gives such a model, and the folder that it was exported to."""

    @functools.cache
    def export(architecture="gpt2", tokenizer="byte_pairs"):
        lm = make_language_model(architecture, tokenizer)
        folder = tmp_path_factory.mktemp("served") / "docs" / "1"
        options = {"temperature": 0} if tokenizer == "chat" else {}
        lm.export(folder, max_new_tokens=MAX_NEW_TOKENS, progress=False, **options)
        return lm, folder

    return export


def graph_ops(folder):
    """Names of all operations in a SavedModel, and of attributes that are true."""
    from tensorflow.core.protobuf import saved_model_pb2

    content = (folder / "saved_model.pb").read_bytes()
    names = set()
    for meta_graph in saved_model_pb2.SavedModel.FromString(content).meta_graphs:
        graph = meta_graph.graph_def
        functions = graph.library.function
        nodes = itertools.chain(graph.node, *(f.node_def for f in functions))
        for part in (*nodes, *functions):
            names.add(getattr(part, "op", "function"))
            names |= {name for name, value in part.attr.items() if value.b}
    return names
