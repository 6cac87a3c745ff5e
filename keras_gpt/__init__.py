"""keras_gpt: from text to a trained, generating, served GPT in Keras 3."""

from importlib import import_module
from typing import TYPE_CHECKING

from keras_gpt.installed import choose_backend
from keras_gpt.quiet import quiet_tensorflow

with quiet_tensorflow():
    choose_backend()
    import keras  # noqa: F401

from keras_gpt import data, generation, layers, tokenizers, training
from keras_gpt.config import FAST_ARCHITECTURE, PRESETS, GPTConfig
from keras_gpt.generation import generate
from keras_gpt.language_model import LanguageModel
from keras_gpt.model import GPT
from keras_gpt.tokenizers import (
    BytePairTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
)

if TYPE_CHECKING:  # for editors
    from keras_gpt import (
        checkpoints,
        evaluation,
        export,
        runs,
        server,
        tasks,
        tf_serving,
    )

__version__ = "0.1.0"

__all__ = [
    "FAST_ARCHITECTURE",
    "GPT",
    "PRESETS",
    "BytePairTokenizer",
    "CharacterTokenizer",
    "GPTConfig",
    "LanguageModel",
    "SentencePieceTokenizer",
    "__version__",
    "checkpoints",
    "data",
    "evaluation",
    "export",
    "generate",
    "generation",
    "layers",
    "runs",
    "server",
    "tasks",
    "tf_serving",
    "tokenizers",
    "training",
]


def __dir__():
    return __all__


def __getattr__(name):
    """Import a folder of the package when it is first used."""
    if name in __all__ or name == "serving":  # the earlier name of `tf_serving`
        return import_module(f"keras_gpt.{name}")
    raise AttributeError(f"module 'keras_gpt' has no attribute {name!r}")
