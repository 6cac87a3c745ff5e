"""The loss of next tokens."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_gpt")
class TokenCrossentropy(keras.losses.SparseCategoricalCrossentropy):
    """Keras's sparse cross-entropy, of all tokens of a batch in a row.

    Of more axes PyTorch copies the logits, twice, to have the vocabulary second.

    Args:
        from_logits: As of Keras's. Defaults to True.
        reduction: As of Keras's. Defaults to the mean over the tokens whose sample
            weight isn't 0.
        **kwargs: Others of Keras's.
    """

    def __init__(self, from_logits=True, reduction="mean_with_sample_weight", **kwargs):
        super().__init__(from_logits=from_logits, reduction=reduction, **kwargs)

    def call(self, y_true, y_pred):
        tokens = ops.shape(y_pred)[:-1]
        losses = super().call(
            ops.reshape(y_true, (-1,)), ops.reshape(y_pred, (-1, y_pred.shape[-1]))
        )
        return ops.reshape(losses, tokens)
