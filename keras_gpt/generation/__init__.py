"""Continuing token ids with a GPT: greedy, sampled or by beam search."""

from keras_gpt.generation.beam import BeamSearch, beam_search
from keras_gpt.generation.generate import generate, start
from keras_gpt.generation.outside import is_outside
from keras_gpt.generation.run import Generation
from keras_gpt.generation.scoring import Evaluation, evaluate_ids, score
from keras_gpt.generation.slots import SlotRow, Slots
from keras_gpt.generation.text import TextAssembler

__all__ = [
    "BeamSearch",
    "Evaluation",
    "Generation",
    "SlotRow",
    "Slots",
    "TextAssembler",
    "beam_search",
    "evaluate_ids",
    "generate",
    "is_outside",
    "score",
    "start",
]
