"""DPO: learn from pairs of answers which of the two is preferred."""

# Axes: b pair, t position, v vocabulary

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.data import Example
from keras_gpt.data.batches import Rows, choose_seed, load_rows
from keras_gpt.fit_inputs import repeated
from keras_gpt.training.lora import has_lora, without_lora

if TYPE_CHECKING:
    import grain


class PreferenceModel(keras.Model):
    """A GPT that is trained by DPO to prefer one answer to another.

    It has the GPT's weights: what is trained is the GPT. Its output is the logit of the
    chosen answer being preferred to the rejected one, for Keras's binary cross-entropy:

        beta * (log p(chosen) - log p(rejected) - reference_margin)

    Args:
        model: A `GPT`, with adapters or without.
        beta: How dear it is to leave the reference model. Defaults to 0.1.

    Call arguments:
        inputs: A dictionary as `load_preferences` makes it: `chosen_ids` and
            `rejected_ids`, integers `(batch, sequence + 1)`; `chosen_weights` and
            `rejected_weights`, `(batch, sequence)`, 1 where the next id is an
            answer's; `reference_margin`, `(batch, 1)`.

    Returns:
        Logits, float32 `(batch, 1)`.

    Raises:
        ValueError: `beta` isn't above 0.

    References:
        - [Rafailov et al., 2023](https://arxiv.org/abs/2305.18290)

    Example:

    >>> import keras_gpt
    >>> from keras_gpt import training
    >>> from keras_gpt.data import Example
    >>> config = keras_gpt.GPTConfig(vocab_size=65, context_length=16, num_heads=2,
    ...                              embedding_dimension=32, num_layers=1)
    >>> model = keras_gpt.GPT(config)
    >>> training.enable_lora(model, rank=4)
    >>> pairs = [(Example([5, 6, 7, 8], [False, False, True, True]),
    ...           Example([5, 6, 9], [False, False, True]))]
    >>> margins = training.reference_margins(model, pairs, sequence_length=8)
    >>> batches = training.load_preferences(pairs, margins, batch_size=1,
    ...                                     sequence_length=8)
    >>> preferences = training.PreferenceModel(model, beta=0.1)
    >>> training.compile_model(preferences, 1e-2)
    >>> history = preferences.fit(batches, steps_per_epoch=8, shuffle=False, verbose=0)
    >>> history.history["loss"][0] < 0.6931
    True
    """

    def __init__(self, model, beta=0.1, name="preferences"):
        if not beta > 0:
            raise ValueError(f"`beta` must be above 0. Received: beta={beta}.")
        inputs = {"reference_margin": keras.Input((1,), name="reference_margin")}
        for part, dtype in (("ids", "int32"), ("weights", "float32")):
            for key in (f"chosen_{part}", f"rejected_{part}"):
                inputs[key] = keras.Input((None,), dtype=dtype, name=key)
        # one call for both: half as many products, each twice as large
        ids, weights = (
            ops.concatenate([inputs[f"chosen_{name}"], inputs[f"rejected_{name}"]], 0)
            for name in ("ids", "weights")
        )
        logits = model(ids[:, :-1])  # (2b, t, v)
        targets = ops.take_along_axis(logits, ids[:, 1:, None], axis=-1)[..., 0]
        log_probs = targets - ops.logsumexp(logits, axis=-1)  # (2b, t)
        answers = ops.reshape(ops.sum(log_probs * weights, axis=1), (2, -1, 1))
        margin = answers[0] - answers[1]  # (b, 1)
        outputs = beta * (margin - inputs["reference_margin"])
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.gpt = model
        self.beta = beta
        # Keras asks the model's own policy whether to scale the loss
        self.dtype_policy = model.dtype_policy
        # the margins stay float32: hundreds of nats, of which tenths count
        self.autocast = False

    @property
    def adapters(self):
        """Those of the GPT."""
        return self.gpt.adapters

    def compile(
        self, optimizer=None, loss=None, *, jit_compile=None, remat=False, **kwargs
    ):
        """Configure training; `keras_gpt.training.compile_model` knows more.

        Args:
            optimizer: Defaults to AdamW with learning rate 1e-5.
            loss: Defaults to `BinaryCrossentropy(from_logits=True)`; its
                `label_smoothing` is for pairs of which some are the wrong way round.
            jit_compile: Defaults to what is fastest on the backend and device.
            remat: As of `GPT.compile`.
            **kwargs: Other arguments of `keras.Model.compile`. `metrics` defaults to
                `accuracy`, how often the chosen answer has become the likelier one.
        """
        if jit_compile is None:
            jit_compile = backend.default_jit_compile(self.gpt.compute_dtype)
        for block in self.gpt.blocks:
            block.remat = remat
        accuracy = keras.metrics.BinaryAccuracy("accuracy", threshold=0)
        super().compile(
            optimizer=optimizer or keras.optimizers.AdamW(1e-5),
            loss=loss or keras.losses.BinaryCrossentropy(from_logits=True),
            jit_compile=jit_compile,
            **{"metrics": [accuracy], **kwargs},
        )

    def fit(self, x=None, *args, **kwargs):
        """Train, as `keras.Model.fit`; an epoch of batches is one pass over them."""
        return super().fit(repeated(x, kwargs), *args, **kwargs)


def reference_margins(
    model,
    pairs: Sequence[tuple[Example, Example]],
    sequence_length: int,
    batch_size: int = 8,
) -> np.ndarray:
    """How much likelier each chosen answer is than the rejected one, before training.

    Args:
        model: The reference, a `GPT`: the one to train, or another. Adapters are
            switched off; merge those that belong to the reference.
        pairs: As in `load_preferences`.
        sequence_length: As in `load_preferences`.
        batch_size: Pairs in a batch.

    Returns:
        `log p(chosen) - log p(rejected)` in nats, float32 `(len(pairs),)`.

    Raises:
        ValueError: As in `load_preferences`.
    """
    spread = keras.distribution.distribution()
    parts = 1 if spread is None else spread.num_model_replicas
    batch_size = math.ceil(batch_size / parts) * parts
    shared = [*pairs, *pairs[-1:] * (-len(pairs) % parts)]
    margins = np.zeros(len(shared), "float32")
    batches = load_preferences(
        shared, margins, batch_size, sequence_length, order="sequential"
    )
    preferences = PreferenceModel(model, beta=1.0)
    preferences.compile()
    with without_lora(model) if has_lora(model) else contextlib.nullcontext():
        found = preferences.predict(batches, steps=len(batches), verbose=0)
    return found[: len(pairs), 0]


def load_preferences(
    pairs: Sequence[tuple[Example, Example]],
    margins: Sequence[float] | np.ndarray,
    batch_size: int,
    sequence_length: int,
    seed: int = 0,
    *,
    order: str = "random",
    start_step: int = 0,
    **options: Any,
) -> "grain.IterDataset":
    """Load batches of pairs as a grain dataset that `PreferenceModel.fit` takes.

    Args:
        pairs: Each the chosen and the rejected example: the same prompt and two
            answers, of at most `sequence_length + 1` ids each.
        margins: For each pair what `reference_margins` returned.
        batch_size: Pairs in a batch.
        sequence_length: Tokens in a row; rows are padded on the right.
        seed: Chooses the random order.
        order: `"random"`, which each epoch of `PreferenceModel.fit` has anew, or
            `"sequential"`, whose last batch may be smaller.
        start_step: The step to start at, as if the steps before had been taken.
        **options: `drop_remainder`, `process_index` and `process_count`, as of
            `data.load_batches`.

    Returns:
        A `grain.IterDataset` of one pass, with `len`, and `repeat()` for one without
        end. Its items are the inputs of `PreferenceModel` and targets, float32 ones
        `(batch_size, 1)`.

    Raises:
        ValueError: There is no pair, one has two prompts, no answer, or is too long,
            or there aren't as many margins as pairs.

    Example:

    >>> from keras_gpt.data import Example
    >>> from keras_gpt.training import load_preferences
    >>> pair = (Example([5, 6, 7, 8], [False, False, True, True]),
    ...         Example([5, 6, 9], [False, False, True]))
    >>> batches = load_preferences([pair], [0.5], 1, 5, order="sequential")
    >>> [inputs, targets] = next(iter(batches))
    >>> inputs["rejected_ids"].tolist(), inputs["rejected_weights"].tolist()
    ([[5, 6, 9, 0, 0, 0]], [[0.0, 1.0, 0.0, 0.0, 0.0]])
    """
    seed = choose_seed(order, seed)
    _check(pairs, margins, sequence_length)
    rows = _PairRows(pairs, margins, sequence_length, seed)
    return load_rows(rows, batch_size, start_step, **options)


class _PairRows(Rows):
    """Rows of pairs: once in order, or epoch after epoch in random order."""

    def __init__(self, pairs, margins, sequence_length, seed):
        self._pairs = pairs
        self._margins = np.asarray(margins, "float32")
        self._length = sequence_length
        super().__init__(len(pairs), seed)

    def gather(self, rows):
        inputs = {"reference_margin": self._margins[rows, None]}
        for side, name in enumerate(("chosen", "rejected")):
            examples = [self._pairs[row][side] for row in rows]
            ids = np.zeros((len(rows), self._length + 1), np.int32)
            weights = np.zeros((len(rows), self._length), np.float32)
            for i, example in enumerate(examples):
                ids[i, : len(example.token_ids)] = example.token_ids
                weights[i, : len(example.token_ids) - 1] = example.is_answer[1:]
            inputs[f"{name}_ids"], inputs[f"{name}_weights"] = ids, weights
        return inputs, np.ones((len(rows), 1), np.float32)


def _check(pairs, margins, sequence_length):
    if not pairs:
        raise ValueError("There are no pairs to learn from.")
    if len(margins) != len(pairs):
        raise ValueError(
            f"`margins` must be one for each of the {len(pairs)} pairs, from "
            f"reference_margins. Received: {len(margins)} margins."
        )
    for index, pair in enumerate(pairs):
        for name, example in zip(("chosen", "rejected"), pair, strict=True):
            if example.num_answer_tokens == 0:
                raise ValueError(
                    f"The {name} example of pair {index} has no answer to learn "
                    "behind its first id. Leave the pair out."
                )
        chosen, rejected = map(_prompt, pair)
        if chosen != rejected:
            raise ValueError(
                f"The examples of pair {index} must have the same prompt. Received "
                f"prompts of {len(chosen)} and {len(rejected)} ids: {chosen[-8:]} and "
                f"{rejected[-8:]} at their ends."
            )
    longest = max(len(example.token_ids) for pair in pairs for example in pair)
    if longest > sequence_length + 1:
        raise ValueError(
            f"`sequence_length` must be at least {longest - 1} for the longest "
            f"example. Received: sequence_length={sequence_length}."
        )


def _prompt(example):
    return example.token_ids[: example.is_answer.index(True)]
