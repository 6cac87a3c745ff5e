"""Continuing token ids with a GPT: greedy, sampled or by beam search."""

from keras_gpt.generation.beam import beam_search
from keras_gpt.generation.generate import Generation, generate

__all__ = ["Generation", "beam_search", "generate"]
