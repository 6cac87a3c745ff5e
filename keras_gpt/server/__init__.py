"""An HTTP server that answers as OpenAI's does, decoding requests together."""

from keras_gpt.server.running import run
from keras_gpt.server.settings import Settings

__all__ = ["Settings", "run"]
