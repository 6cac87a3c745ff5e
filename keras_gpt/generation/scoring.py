"""How likely a model finds given tokens."""

# Axes: b batch, t position, v vocabulary

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from keras import ops

from keras_gpt.generation.outside import is_outside, measure_outside
from keras_gpt.generation.programs import compiled
from keras_gpt.generation.rows import (
    check_prompts,
    find_adapters,
    list_adapters,
    pad_prompts,
)
from keras_gpt.generation.sampling import chosen_log_probs, likeliest

_BATCH_SIZE = 8
_TOKENS_AT_ONCE = 8192
_LOGITS_AT_ONCE = 2**25  # 128 MB
_WINDOWS_AT_ONCE = 64
_ALTERNATIVES = 10


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts text.

    Attributes:
        loss: Mean negative log-probability of a token, in nats.
        perplexity: `exp(loss)`.
        bits_per_byte: Bits that the model needs for each byte of UTF-8 text, which
            compares models with different tokenizers.
        num_tokens: Tokens that were predicted.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    num_tokens: int


def score(
    model, ids: Sequence[Sequence[int]], *, adapter: str | None = None
) -> list[np.ndarray]:
    """Log-probability in nats of each token given those before it in its row.

    Args:
        model: A `GPT`.
        ids: Rows of token ids, each of at most `context_length + 1` of them.
        adapter: The name of one of the model's. Defaults to `None`, none.

    Returns:
        For each row float32 `(len(row) - 1,)`: its first token has none before it.

    Raises:
        ValueError: A row is empty, too long or has ids out of range, or there is no
            such adapter.
    """
    return _score_rows(model, ids, chosen_log_probs, _BATCH_SIZE, adapter)


def score_against_greedy(
    model,
    ids: Sequence[Sequence[int]],
    *,
    batch_size: int = _BATCH_SIZE,
    adapter: str | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Score tokens, and tell which of them greedy decoding would have chosen.

    Args:
        model: A `GPT`.
        ids: As of `score`.
        batch_size: Rows at once.
        adapter: As of `score`.

    Returns:
        For each row its log-probabilities as of `score`, and booleans of that shape:
        whether no other token was likelier.

    Raises:
        ValueError: As of `score`.
    """
    rows = _score_rows(model, ids, _log_probs_and_greedy, batch_size, adapter)
    return [(row[:, 0], row[:, 1] == 1) for row in rows]


def find_alternatives(
    model, ids: Sequence[int], *, adapter: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What else a model would have written in each place of a text, and behind it.

    Args:
        model: A `GPT`.
        ids: Token ids, at most `context_length`.
        adapter: As of `score`.

    Returns:
        Three arrays with a row for each place, from that of the second token to that
        behind the last: the log-probability in nats of the token that is there
        (behind the last NaN) `(places,)`; and the ids and log-probabilities of the
        likeliest 10 tokens (all, of a smaller vocabulary), the likeliest first,
        `(places, 10)`.

    Raises:
        ValueError: There are none, too many, or some out of range.
    """
    [ids] = check_prompts([ids], model.config)
    measure = _log_probs_and_alternatives
    [found] = _score_rows(model, [[*ids, 0]], measure, 1, adapter)
    log_probs, (values, chosen) = found[:, 0], np.split(found[:, 1:], 2, axis=1)
    log_probs[-1] = math.nan
    return log_probs, chosen.astype("int32"), values


def score_program(model):
    """Make the function from ids and targets to log-probabilities, all `(b, t)`."""
    return measuring_program(model, chosen_log_probs)


def measuring_program(model, measure):
    """Make the function from ids and targets to `measure(logits, targets)`."""

    def run(state, inputs):
        return _measure(model, inputs, measure)

    return run


def _measure(model, inputs, measure):
    """`measure(logits, targets)` of all tokens, without holding all their logits."""
    x = model.hidden_states(inputs["token_ids"], inputs.get("adapter"))
    targets = inputs["targets"]
    (b, t), v = targets.shape, model.config.vocab_size
    # in an exported graph the sizes are unknown
    if b is None or t is None or b * t * v <= _LOGITS_AT_ONCE:
        return measure(model.logits(x), targets)
    size = max(1, _LOGITS_AT_ONCE // v)
    missing = -b * t % size

    def cut(x, *width):
        x = ops.reshape(x, (b * t, *width))
        x = ops.pad(x, [[0, missing], *[[0, 0] for _ in width]])
        return ops.reshape(x, (-1, size, *width))

    parts = cut(x, x.shape[-1]), cut(targets)
    result = ops.map(lambda part: measure(model.logits(part[0]), part[1]), parts)
    result = ops.reshape(result, (b * t + missing, *result.shape[2:]))
    return ops.reshape(result[: b * t], (b, t, *result.shape[1:]))


def _log_probs_and_greedy(logits, targets):
    """Log-probabilities, and whether the targets are greedy, `(b, t, 2)`."""
    log_probs = chosen_log_probs(logits, targets)
    is_greedy = ops.equal(ops.argmax(logits, axis=-1), targets)
    return ops.stack([log_probs, ops.cast(is_greedy, log_probs.dtype)], axis=-1)


def _log_probs_and_alternatives(logits, targets):
    """Log-probabilities, the likeliest tokens' and their ids, `(b, t, 1 + 20)`."""
    chosen = chosen_log_probs(logits, targets)[..., None]
    others = likeliest(logits, min(_ALTERNATIVES, logits.shape[-1]))
    return ops.concatenate([chosen, others], axis=-1)


def _score_rows(model, ids, measure, batch_size, adapter):
    """What `measure(logits, targets)` gives for each row's tokens but the first."""
    rows = check_prompts(ids, model.config, most=model.config.context_length + 1)
    [number] = find_adapters(list_adapters(model), adapter, 1)
    if is_outside(model):
        program = measure_outside(model, measure)
    else:
        program = compiled(model, measuring_program, measure=measure)
    scores = [np.zeros(0, "float32")] * len(rows)
    # rows of like length together, so that little is computed for padding
    waiting = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    while waiting:
        longest = len(rows[waiting[-1]])
        count = max(1, min(batch_size, _TOKENS_AT_ONCE // longest))
        chosen, waiting = waiting[-count:], waiting[:-count]
        inputs, _ = pad_prompts([rows[row][:-1] for row in chosen], model.config)
        targets, _ = pad_prompts([rows[row][1:] for row in chosen], model.config)
        arrays = {"token_ids": inputs, "targets": targets}
        if number:
            arrays["adapter"] = np.full(len(inputs), number, "int32")
        result = np.array(ops.convert_to_numpy(program({}, arrays)))
        for i, row in enumerate(chosen):
            scores[row] = result[i, : len(rows[row]) - 1]
    return scores


def evaluate_ids(
    model,
    pieces: Iterable[list[int]],
    decode_bytes: Callable[..., bytes],
    *,
    adapter: str | None = None,
) -> Evaluation:
    """Measure how well a model predicts a stream of token ids.

    Args:
        model: A `GPT`.
        pieces: Token ids, in pieces of any length.
        decode_bytes: The tokenizer's, to count the bytes of the text.
        adapter: As of `score`.

    Returns:
        An `Evaluation`, over windows that don't overlap.

    Raises:
        ValueError: There are fewer than two tokens.
    """
    windows = _windows(pieces, model.config.context_length)
    num_bytes, num_tokens, loss = 0, 0, 0.0
    while batch := list(itertools.islice(windows, _WINDOWS_AT_ONCE)):
        scores = score(model, batch, adapter=adapter)
        for window, log_probs in zip(batch, scores, strict=True):
            num_bytes += len(decode_bytes(window[1:], skip_special_tokens=True))
            num_tokens += len(log_probs)
            loss -= float(log_probs.sum(dtype="float64"))
    if num_tokens == 0:
        raise ValueError("The text to evaluate must hold at least two tokens.")
    return Evaluation(
        loss=loss / num_tokens,
        perplexity=math.exp(loss / num_tokens),
        bits_per_byte=loss / math.log(2) / max(num_bytes, 1),
        num_tokens=num_tokens,
    )


def _windows(pieces, length):
    """Windows of up to `length + 1` ids, each from the last's end."""
    ids: list[int] = []
    for piece in pieces:
        ids += piece
        for start in range(0, len(ids) - length - 1, length):
            yield ids[start : start + length + 1]
        # the id that starts the next window, and what there is behind it
        ids = ids[max(0, len(ids) - 2) // length * length :]
    if len(ids) > 1:
        yield ids
