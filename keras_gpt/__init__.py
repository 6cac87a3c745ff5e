"""keras_gpt: from text to a trained, generating, served GPT in Keras 3."""

from keras_gpt import generation, layers
from keras_gpt.config import PRESETS, GPTConfig
from keras_gpt.generation import generate
from keras_gpt.model import GPT

__version__ = "0.1.0"

__all__ = ["GPT", "PRESETS", "GPTConfig", "__version__", "generate", "generation", "layers"]
