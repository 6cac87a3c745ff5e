"""keras_gpt: from text to a trained, generating, served GPT in Keras 3."""

from keras_gpt import data, generation, layers, tokenizers, training
from keras_gpt.config import PRESETS, GPTConfig
from keras_gpt.generation import generate
from keras_gpt.language_model import LanguageModel
from keras_gpt.model import GPT
from keras_gpt.tokenizers import (
    BytePairTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
)

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "PRESETS",
    "BytePairTokenizer",
    "CharacterTokenizer",
    "GPTConfig",
    "LanguageModel",
    "SentencePieceTokenizer",
    "__version__",
    "data",
    "generate",
    "generation",
    "layers",
    "tokenizers",
    "training",
]
