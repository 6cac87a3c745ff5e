"""Token ids, checked."""

import keras
import numpy as np


def as_array(token_ids, name="token_ids"):
    """Return NumPy's array of another library's, of lists, or the same."""
    if keras.ops.is_tensor(token_ids):  # perhaps not in the memory of the host
        return keras.ops.convert_to_numpy(token_ids)
    try:
        return np.asarray(token_ids)
    except ValueError as error:
        raise ValueError(
            f"`{name}` must be a rectangle `(batch, sequence)`; pad shorter rows on "
            f"the right. {error}"
        ) from error


def check_token_ids(token_ids, vocab_size, name="token_ids"):
    """Return integer NumPy ids, or raise `ValueError` naming the first out of range."""
    token_ids = as_array(token_ids, name)
    if not np.issubdtype(token_ids.dtype, np.integer):
        hint = ""
        if token_ids.dtype.kind in "OSTU":
            hint = (
                " Texts become ids by a tokenizer's `encode`, and batches to train on "
                "by keras_gpt.data.load_texts(texts, tokenizer, ...)."
            )
        raise ValueError(
            f"`{name}` must be integers. Received: dtype={token_ids.dtype}.{hint}"
        )
    highest = vocab_size - 1
    if token_ids.size and (token_ids.min() < 0 or token_ids.max() > highest):
        outside = (token_ids < 0) | (token_ids > highest)
        raise ValueError(
            f"`{name}` must be from 0 to {highest} (vocab_size={vocab_size}). "
            f"Received: {int(token_ids[outside][0])}. Was the text encoded with "
            "another tokenizer?"
        )
    return token_ids


def check_length(length, context_length):
    """Raise `ValueError` for more tokens than a model sees at once."""
    if length > context_length:
        raise ValueError(
            "The sequence is longer than the model's context. Received: "
            f"{length} tokens, context_length={context_length}. Shorten "
            "the input or build the model with a larger context_length."
        )


def check_batch(
    x, y, sample_weight, *, vocab_size, context_length, targets_are_ids=True
):
    """Raise `ValueError` unless a batch, or a whole array, can be learned from.

    Args:
        x: What should be token ids `(batch, sequence)`.
        y: Targets, or `None`.
        sample_weight: Their weights, or `None`.
        vocab_size: The model's.
        context_length: The model's.
        targets_are_ids: Whether the loss wants an id as each target.
    """
    if isinstance(x, dict):  # by name, as Keras takes inputs too
        return
    x = check_token_ids(x, vocab_size, "x")
    if x.ndim != 2:
        raise ValueError(
            "`x` must be token ids `(batch, sequence)`. Received: "
            f"shape={x.shape}. One sequence is a batch of one: x[None]."
        )
    check_length(x.shape[1], context_length)
    if y is None and sample_weight is not None:
        raise ValueError("`sample_weight` needs `y`: give the targets too.")
    if y is None or not targets_are_ids:
        return
    y = check_token_ids(y, vocab_size, "y")
    if y.shape not in (x.shape, (*x.shape, 1)):
        raise ValueError(
            "`y` must have the shape of `x`: for each id the one that follows. "
            f"Received: x {x.shape}, y {y.shape}."
        )
    shape = x.shape if sample_weight is None else np.shape(sample_weight)
    if shape not in (x.shape, x.shape[:1], (x.shape[0], 1)):
        raise ValueError(
            "`sample_weight` must have a number for each target or each row. "
            f"Received: x {x.shape}, sample_weight {shape}."
        )
