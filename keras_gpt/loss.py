"""The loss of next tokens."""

# Axes: b batch, t position, c chunk, e embedding, v vocabulary

import contextlib
import contextvars

import keras
from keras import ops

from keras_gpt import backend

LOGITS_AT_ONCE = 2**26  # 256 MB
# The output layer whose logits the loss makes in this thread, and whether to train
_output_layer = contextvars.ContextVar("output_layer", default=(None, False))
# Tokens that the loss of the batch in this thread is a mean over
_num_counted = contextvars.ContextVar("num_counted", default=None)


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

    def can_make_logits(self, shape, config):
        """Whether it is better to give it hidden states: where logits are many.

        Args:
            shape: Of the token ids. On TensorFlow the number of rows is often unknown,
                and guessed.
            config: The model's, with `vocab_size` and `context_length`.
        """
        rows, tokens = shape[0] or 8, shape[1] or config.context_length
        are_many = rows * tokens * config.vocab_size > LOGITS_AT_ONCE
        is_mean = self.reduction == "mean_with_sample_weight"
        return are_many and is_mean and self.ignore_class is None

    def __call__(self, y_true, y_pred, sample_weight=None):
        layer, is_training = _output_layer.get()
        if layer is None:
            return super().__call__(y_true, y_pred, sample_weight)
        targets = ops.reshape(ops.cast(y_true, "int32"), ops.shape(y_pred)[:-1])
        weights = _weights(targets, sample_weight)
        with making_logits(None):
            total = _sum_losses(layer, y_pred, targets, weights, is_training)
        return ops.divide_no_nan(total, count_tokens(self, targets, sample_weight))


class _Reduction(keras.losses.Loss):
    """What Keras makes of the losses of tokens, which are given."""

    def __init__(self, reduction):
        super().__init__(name="reduction", reduction=reduction)

    def call(self, y_true, y_pred):
        return y_pred


def _weights(targets, sample_weight):
    """Of each token, `(b, t)`, as Keras broadcasts them."""
    ones = ops.ones_like(targets, dtype="float32")
    return _Reduction(reduction=None)(ones, ones, sample_weight)


def count_tokens(loss, targets, sample_weight=None):
    """What the sum of a batch's losses is divided by: mostly, how many tokens count.

    Args:
        loss: As of `compile`.
        targets: `(b, t)`.
        sample_weight: As of `fit`.

    Returns:
        A float32 scalar.
    """
    ignored = getattr(loss, "ignore_class", None)
    if ignored is not None:
        counts = ops.cast(ops.not_equal(targets, ignored), "float32")
        return ops.sum(counts * _weights(targets, sample_weight))
    ones = ops.ones_like(targets, dtype="float32")
    reduction = getattr(loss, "reduction", "sum_over_batch_size")
    mean = _Reduction(reduction=reduction)(ones, ones, sample_weight)
    return ops.divide_no_nan(ops.sum(_weights(targets, sample_weight)), mean)


@contextlib.contextmanager
def counted(number):
    """While this lasts, a batch's loss is known to be a mean over `number` tokens."""
    token = _num_counted.set(number)
    try:
        yield
    finally:
        _num_counted.reset(token)


def num_counted():
    """How many tokens the loss of this batch is a mean over, or `None`."""
    return _num_counted.get()


@contextlib.contextmanager
def making_logits(layer, is_training=False):
    """While this lasts, `TokenCrossentropy` is given hidden states `(b, t, e)`.

    The logits of a batch are the largest thing in the training of a small GPT. The
    loss needs them once, chunk by chunk, and so do its gradients.

    Args:
        layer: From hidden states to logits, `(b, t, v)`; in a model it passes on the
            hidden states if `makes_logits(layer)`.
        is_training: Whether gradients are wanted.

    References:
        - [Hsu et al., 2024](https://arxiv.org/abs/2410.10989), gradients in the
          forward pass
    """
    token = _output_layer.set((layer, is_training))
    try:
        yield
    finally:
        _output_layer.reset(token)


def makes_logits(layer):
    """Whether the loss makes the logits of this layer."""
    return _output_layer.get()[0] is layer


def _sum_losses(layer, x, targets, weights, is_training):
    """The weighted sum of the losses of all tokens."""

    def sum_losses(x, targets, weights):
        logits = layer(x)
        chosen = ops.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return ops.sum(weights * (ops.logsumexp(logits, axis=-1) - chosen))

    b, t = ops.shape(targets)
    length = _at_least_1(LOGITS_AT_ONCE // (b * layer.vocab_size))
    count = (t + length - 1) // length
    length = (t + count - 1) // count  # chunks of like length
    missing = count * length - t

    def cut(x):
        width = x.shape[2:]
        x = ops.pad(x, [[0, 0], [0, missing], *([0, 0] for _ in width)])
        x = ops.reshape(x, (b, count, length, *width))
        return ops.moveaxis(x, 1, 0)

    x, *others = cut(x), cut(targets), cut(weights)
    if is_training:
        return backend.sum_over_chunks(sum_losses, layer.variables, x, others)
    return ops.sum(ops.map(lambda chunk: sum_losses(*chunk), (x, *others)))


def _at_least_1(x):
    return max(1, x) if isinstance(x, int) else ops.maximum(x, 1)


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
