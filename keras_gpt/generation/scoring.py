"""How likely a model finds given tokens."""

# Axes: b batch, t position, v vocabulary

from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_gpt.generation.controls import check_prompts, pad_prompts
from keras_gpt.generation.generate import compiled

_BATCH_SIZE = 8


def score(model, ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Log-probability in nats of each token given those before it in its row.

    Args:
        model: A `GPT`.
        ids: Rows of token ids, each of at most `context_length + 1` of them.

    Returns:
        For each row float32 `(len(row) - 1,)`: its first token has none before it.

    Raises:
        ValueError: A row is empty, too long or has ids out of range.
    """
    rows = check_prompts(ids, model.config, most=model.config.context_length + 1)
    program = compiled(model, score_program)
    scores = [np.zeros(0, "float32")] * len(rows)
    # rows of like length together, so that little is computed for padding
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for first in range(0, len(order), _BATCH_SIZE):
        chosen = order[first : first + _BATCH_SIZE]
        inputs, _ = pad_prompts([rows[row][:-1] for row in chosen], model.config)
        targets, _ = pad_prompts([rows[row][1:] for row in chosen], model.config)
        arguments = {
            "token_ids": ops.convert_to_tensor(inputs),
            "targets": ops.convert_to_tensor(targets),
        }
        log_probs = np.array(ops.convert_to_numpy(program({}, arguments)))
        for i, row in enumerate(chosen):
            scores[row] = log_probs[i, : len(rows[row]) - 1]
    return scores


def score_program(model):
    """Make the function from ids and targets to log-probabilities, all `(b, t)`."""

    def log_probs(state, inputs):
        logits = model(inputs["token_ids"])  # (b, t, v)
        targets = inputs["targets"][..., None]
        chosen = ops.take_along_axis(logits, targets, axis=-1)[..., 0]
        return chosen - ops.logsumexp(logits, axis=-1)

    return log_probs
