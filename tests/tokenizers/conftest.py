import pydoc_data.topics

import pytest

from keras_gpt.tokenizers import (
    BytePairTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
)

SPECIAL_TOKENS = ("<|endoftext|>", "<|user|>", "<|user|>s")


@pytest.fixture(scope="session")
def documents():
    """Some 100 kB of real English."""
    return list(pydoc_data.topics.topics.values())[:30]


@pytest.fixture(scope="session")
def tokenizers(documents):
    """One tokenizer of each kind, and both kinds of SentencePiece model."""
    options = {"special_tokens": SPECIAL_TOKENS, "progress": False}
    train_pieces = SentencePieceTokenizer.train
    return {
        "character": CharacterTokenizer.train(documents, unknown="symbol", **options),
        "sentence_piece": train_pieces(documents, 600, **options),
        "unigram": train_pieces(documents, 600, model_type="unigram", **options),
        "byte_pair": BytePairTokenizer.train(documents, 600, **options),
    }


@pytest.fixture(params=["character", "sentence_piece", "unigram", "byte_pair"])
def tokenizer(request, tokenizers):
    return tokenizers[request.param]
