"""The layers that a GPT is made of."""

from keras_gpt.layers.adapter import LowRankAdapter
from keras_gpt.layers.attention import CausalSelfAttention
from keras_gpt.layers.block import TransformerBlock
from keras_gpt.layers.documents import DocumentPositions
from keras_gpt.layers.embedding import TokenAndPositionEmbedding
from keras_gpt.layers.feed_forward import FeedForward
from keras_gpt.layers.rotary import RotaryAngles

__all__ = [
    "CausalSelfAttention",
    "DocumentPositions",
    "FeedForward",
    "LowRankAdapter",
    "RotaryAngles",
    "TokenAndPositionEmbedding",
    "TransformerBlock",
]
