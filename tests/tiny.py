"""A tiny model that can chat."""

import keras
import numpy as np

from keras_gpt import GPT, CharacterTokenizer, GPTConfig, LanguageModel
from keras_gpt.tokenizers import ChatTemplate

LETTERS = 'abcdefghijklmnopqrstuvwxyz0123456789 .,?![]é\n{}":'
TEMPLATE = (
    "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


def make_lm(letters=LETTERS, template=TEMPLATE, context_length=64, num_unused=3):
    """A random model that answers with random letters.

    Of its ids some may mean nothing, as of some pretrained models.
    """
    keras.utils.set_random_seed(0)
    config = GPTConfig(
        vocab_size=len(letters) + num_unused,
        context_length=context_length,
        embedding_dimension=16,
        num_layers=1,
        num_heads=2,
    )
    model = GPT(config)
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(random.normal(scale=0.5, size=variable.shape))
    return LanguageModel(
        model, CharacterTokenizer(letters), chat_template=ChatTemplate(template)
    )
