"""keras_gpt: from text to a trained, generating, served GPT in Keras 3."""

from keras_gpt.config import PRESETS, GPTConfig

__version__ = "0.1.0"

__all__ = ["PRESETS", "GPTConfig", "__version__"]
