"""From the last hidden states to logits."""

import keras

from keras_gpt.layers.base import BaseLayer
from keras_gpt.loss import makes_logits


@keras.saving.register_keras_serializable("keras_gpt")
class Logits(BaseLayer):
    """The output projection, over the matrices that the embedding holds.

    Without the embedding it is nothing, so its configuration is that of the model, of
    which `keras.models.clone_model` makes another.

    Args:
        embedding: The model's `TokenAndPositionEmbedding`.
        describe_model: The model's `get_config`.
        vocab_size: Number of token ids.
        **kwargs: `name`, `dtype` of `keras.layers.Layer`.
    """

    def __init__(self, embedding, describe_model, vocab_size, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding
        self.describe_model = describe_model
        self.vocab_size = vocab_size

    def build(self, x_shape):
        self.built = True

    def call(self, x):
        # while a loss makes them, chunk by chunk, the hidden states are passed on
        return x if makes_logits(self) else self.embedding.project(x)

    def compute_output_spec(self, x):
        shape = (*x.shape[:-1], self.vocab_size)
        return keras.KerasTensor(shape, dtype="float32")

    def get_config(self):
        config = keras.layers.Layer.get_config(self)
        return {**config, "model": self.describe_model()}

    @classmethod
    def from_config(cls, config):
        model = config.pop("model")
        return cls(None, lambda: model, model["config"]["vocab_size"], **config)
