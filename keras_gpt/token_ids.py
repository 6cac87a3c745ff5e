"""Token ids, checked."""

import numpy as np


def check_token_ids(token_ids, vocab_size, name="token_ids"):
    """Return integer NumPy ids, or raise `ValueError` naming the first out of range."""
    try:
        token_ids = np.asarray(token_ids)
    except ValueError as error:
        raise ValueError(
            f"`{name}` must be a rectangle `(batch, sequence)`; pad shorter rows on "
            f"the right. {error}"
        ) from error
    if not np.issubdtype(token_ids.dtype, np.integer):
        raise ValueError(
            f"`{name}` must be integers. Received: dtype={token_ids.dtype}."
        )
    highest = vocab_size - 1
    outside = (token_ids < 0) | (token_ids >= vocab_size)
    if outside.any():
        raise ValueError(
            f"`{name}` must be from 0 to {highest} (vocab_size={vocab_size}). "
            f"Received: {int(token_ids[outside][0])}. Was the text encoded with "
            "another tokenizer?"
        )
    return token_ids
