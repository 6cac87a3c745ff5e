"""What a caller asks of a generation, checked and spread over the rows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.config import GPTConfig
from keras_gpt.model import check_token_ids

_STOP_IDS_ROOM = 8  # stop ids are padded to a multiple of this


@dataclass
class Controls:
    """One value a row of each control; `check` makes it from what callers give."""

    prompts: list[list[int]]
    max_new_tokens: np.ndarray
    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    repetition_penalty: np.ndarray
    stop_ids: np.ndarray
    seeds: list[int]

    @classmethod
    def check(
        cls,
        config: GPTConfig,
        prompts,
        *,
        max_new_tokens=64,
        temperature=0.8,
        top_k=40,
        top_p=None,
        min_p=None,
        repetition_penalty=1.0,
        stop_ids=(),
        seed=0,
        num_return_sequences=1,
    ) -> "Controls":
        """Check everything; see `keras_gpt.generate` for the arguments."""
        prompts = check_prompts(prompts, config)
        if not isinstance(num_return_sequences, int) or num_return_sequences < 1:
            raise ValueError(
                "`num_return_sequences` must be a positive integer. Received: "
                f"num_return_sequences={num_return_sequences!r}."
            )
        rows = len(prompts)

        def spread(name, value, default, is_valid, wanted, dtype="float32"):
            values = (
                value if isinstance(value, Sequence | np.ndarray) else [value] * rows
            )
            if len(values) != rows:
                raise ValueError(
                    f"`{name}` must be one value or one for each of the {rows} "
                    f"prompts. Received: {len(values)} values."
                )
            values = [default if item is None else item for item in values]
            for item in values:
                if not (
                    isinstance(item, Real) and math.isfinite(item) and is_valid(item)
                ):
                    raise ValueError(f"`{name}` must be {wanted}. Received: {item!r}.")
            # a limit beyond int32 is no limit
            values = np.minimum(np.array(values, "float64"), 2**30).astype(dtype)
            return np.repeat(values, num_return_sequences)

        vocab_size = config.vocab_size
        return cls(
            prompts=[list(p) for p in prompts for _ in range(num_return_sequences)],
            max_new_tokens=spread(
                "max_new_tokens",
                max_new_tokens,
                64,
                lambda n: 0 <= n <= 2**30 and n == int(n),
                "an integer from 0 to 2**30",
                "int32",
            ),
            temperature=spread(
                "temperature",
                temperature,
                1.0,
                lambda t: t >= 0,
                "at least 0 (0 is greedy)",
            ),
            top_k=spread(
                "top_k",
                top_k,
                vocab_size,
                lambda k: k >= 1 and k == int(k),
                "an integer of at least 1, or None for no limit",
                "int32",
            ),
            top_p=spread(
                "top_p",
                top_p,
                1.0,
                lambda p: 0 < p <= 1,
                "above 0 and at most 1, or None for no limit",
            ),
            min_p=spread(
                "min_p",
                min_p,
                0.0,
                lambda p: 0 <= p <= 1,
                "from 0 to 1, or None for no limit",
            ),
            repetition_penalty=spread(
                "repetition_penalty",
                repetition_penalty,
                1.0,
                lambda p: p > 0,
                "above 0 (1 changes nothing)",
            ),
            stop_ids=check_stop_ids(stop_ids, vocab_size),
            seeds=spread_seeds(seed, rows, num_return_sequences),
        )

    def tensors(self, padded_rows: int) -> dict:
        """The controls as tensors, with values for rows that only fill the bucket."""
        fill = {
            "max_new_tokens": 0,
            "temperature": 0.0,
            "top_k": 1 << 30,
            "top_p": 1.0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        tensors = {}
        for name, value in fill.items():
            values = getattr(self, name)
            padded = np.full(padded_rows, value, values.dtype)
            padded[: len(values)] = values
            tensors[name] = ops.convert_to_tensor(padded)
        tensors["stop_ids"] = ops.convert_to_tensor(self.stop_ids)
        return tensors

    def seen(self, padded_rows: int, vocab_size: int) -> np.ndarray:
        """Booleans `(rows, vocab_size)`: the tokens of each prompt."""
        seen = np.zeros((padded_rows, vocab_size), bool)
        for row, prompt in enumerate(self.prompts):
            seen[row, prompt] = True
        return seen


def check_prompts(
    prompts, config: GPTConfig, *, most: int | None = None
) -> list[list[int]]:
    """Return the prompts as lists, or raise `ValueError` naming the wrong one.

    Args:
        prompts: Lists of token ids.
        config: The model's.
        most: Longest prompt. Defaults to `context_length`.
    """
    most = most or config.context_length
    if isinstance(prompts, str) or not isinstance(prompts, Sequence | np.ndarray):
        raise ValueError(
            "`ids` must be a list of prompts, each a list of token ids. Received: "
            f"{type(prompts).__name__}."
        )
    checked = []
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, Sequence | np.ndarray) or isinstance(prompt, str):
            raise ValueError(
                "`ids` must be a list of prompts, each a list of token ids. Received "
                f"at {row}: {prompt!r}. For one prompt write [ids]."
            )
        if len(prompt) == 0:
            raise ValueError(
                f"Prompt {row} is empty. Give at least one token, for example the "
                "end-of-text token."
            )
        if len(prompt) > most:
            raise ValueError(
                f"Prompt {row} is longer than the model's context. Received: "
                f"{len(prompt)} tokens, context_length={config.context_length}. Keep "
                f"the last {most} of them."
            )
        checked.append(check_token_ids(prompt, config.vocab_size).tolist())
    return checked


def check_stop_ids(stop_ids, vocab_size: int) -> np.ndarray:
    """Stop ids, int32, padded with -1 to a size that seldom changes."""
    if isinstance(stop_ids, str) or not isinstance(stop_ids, Iterable):
        raise ValueError(
            f"`stop_ids` must be a list of token ids. Received: {stop_ids!r}."
        )
    stop_ids = list(stop_ids)
    if stop_ids:
        check_token_ids(stop_ids, vocab_size, name="stop_ids")
    room = -(-max(len(stop_ids), 1) // _STOP_IDS_ROOM) * _STOP_IDS_ROOM
    return np.array(stop_ids + [-1] * (room - len(stop_ids)), "int32")


def spread_seeds(seed, rows: int, num_return_sequences: int) -> list[int]:
    """One seed a row: counted up from one seed, or from each prompt's own."""
    seeds = seed if isinstance(seed, Sequence | np.ndarray) else [seed]
    for item in seeds:
        if not isinstance(item, Integral) or item < 0:
            raise ValueError(
                f"`seed` must be an integer of at least 0. Received: {item!r}."
            )
    if seeds is seed:
        if len(seed) != rows:
            raise ValueError(
                f"`seed` must be one integer or one for each of the {rows} prompts. "
                f"Received: {len(seed)} values."
            )
        starts = [int(s) for s in seed]
    else:
        starts = [int(seed) + row * num_return_sequences for row in range(rows)]
    return [start + i for start in starts for i in range(num_return_sequences)]


def pad_prompts(
    prompts: list[list[int]], config: GPTConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Pad to a bucket of shapes.

    Args:
        prompts: Token ids of each row.
        config: The model's, for `context_length`.

    Returns:
        Token ids `(padded rows, padded length)` and lengths `(padded rows,)`, int32.
        Rows that only fill the bucket hold one token.
    """
    longest = max(1, *map(len, prompts))
    length = min(max(backend.bucket(longest), 16), config.context_length)
    token_ids = np.zeros((backend.bucket(len(prompts)), length), "int32")
    lengths = np.ones(len(token_ids), "int32")
    for row, prompt in enumerate(prompts):
        token_ids[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    return token_ids, lengths
