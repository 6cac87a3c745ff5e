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


# Those that take probabilities unless told that they are given logits
_OF_PROBABILITIES = (
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
)


def check_takes_logits(loss):
    """Raise `ValueError` for a cross-entropy that would take logits for probabilities.

    Args:
        loss: As of `compile`.
    """
    found = keras.losses.get(loss) if isinstance(loss, str) else loss
    if found in _OF_PROBABILITIES or getattr(found, "from_logits", True) is False:
        name = getattr(found, "__name__", type(found).__name__)
        raise ValueError(
            "`loss` must take the model's logits, not probabilities. Received: "
            f"loss={name}, with from_logits=False. Leave it out for keras_gpt's own, "
            "TokenCrossentropy, or give "
            "keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
        )
