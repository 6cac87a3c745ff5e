"""Continuing token ids with a GPT: greedy, sampled or by beam search."""

from keras_gpt.generation.beam import beam_search
from keras_gpt.generation.generate import Generation, generate
from keras_gpt.generation.scoring import Evaluation, evaluate_ids, score
from keras_gpt.generation.text import TextAssembler

__all__ = [
    "Evaluation",
    "Generation",
    "TextAssembler",
    "beam_search",
    "evaluate_ids",
    "generate",
    "score",
]
