"""From the last hidden states to logits."""

import keras

from keras_gpt.layers.base import BaseLayer


@keras.saving.register_keras_serializable("keras_gpt")
class Logits(BaseLayer):
    """The output projection, over the matrices that the embedding holds.

    Args:
        embedding: The model's `TokenAndPositionEmbedding`.
        **kwargs: `name`, `dtype` of `keras.layers.Layer`.
    """

    def __init__(self, embedding, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding

    def build(self, x_shape):
        self.built = True

    def call(self, x):
        return self.embedding.project(x)

    def compute_output_spec(self, x):
        shape = (*x.shape[:-1], self.embedding.vocab_size)
        return keras.KerasTensor(shape, dtype="float32")
