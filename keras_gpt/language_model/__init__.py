"""`LanguageModel`: a GPT with its tokenizer, on disk and in use."""

from keras_gpt.generation import Evaluation
from keras_gpt.language_model.attention import Attention, read_attention
from keras_gpt.language_model.completion import Completion
from keras_gpt.language_model.language_model import LanguageModel
from keras_gpt.language_model.storage import (
    CONFIG_FILE,
    TOKENIZER_FOLDER,
    find_base,
    is_saved,
)

__all__ = [
    "CONFIG_FILE",
    "TOKENIZER_FOLDER",
    "Attention",
    "Completion",
    "Evaluation",
    "LanguageModel",
    "find_base",
    "is_saved",
    "read_attention",
]
