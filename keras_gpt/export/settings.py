"""What is fixed when a model is exported, checked."""

import dataclasses
import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Self

from keras_gpt.config import suggest
from keras_gpt.generation.controls import check_stop_ids

WEIGHTS = ("float32", "bfloat16", "int8")
FLAVOURS = ("stock", "xla")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is fixed when a model is exported; `check` makes it from what callers give.

    Attributes:
        max_new_tokens: Most new tokens, and how many `serving_default` makes.
        max_prompt_tokens: Longest prompt.
        stop_ids: Token ids that end a text.
        temperature: `serving_default`'s, as are the next three.
        top_k: 0 for no limit.
        top_p: 1 for no limit.
        seed: The same for each row.
        min_p: For every request; 0 for no limit.
        repetition_penalty: For every request; 1 changes nothing.
        weights: What the weights are stored in; `None` for what the model has.
        flavour: `"stock"`, or `"xla"` for servers that may compile.
        batch_sizes: Numbers of rows that the server is warmed up with.
    """

    max_new_tokens: int
    max_prompt_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    min_p: float
    repetition_penalty: float
    weights: str | None
    flavour: str
    batch_sizes: tuple[int, ...]

    @classmethod
    def check(
        cls,
        lm: Any,
        *,
        max_new_tokens: int,
        max_prompt_tokens: int | None,
        stop_ids: Sequence[int] | None,
        weights: str | None,
        flavour: str,
        batch_sizes: Sequence[int],
        **defaults,
    ) -> Self:
        """Check everything; see `LanguageModel.export` for the arguments."""
        config = lm.model.config
        given = {"temperature": 0.8, "top_k": 40, "top_p": None, "min_p": None}
        given |= {"repetition_penalty": 1.0, "seed": 0}
        known = set(given)
        given |= lm.generation_defaults | defaults
        unknown = sorted(set(given) - known)
        if unknown:
            raise TypeError(
                f"Unknown control. {suggest('control', unknown[0], sorted(known))}"
            )
        top_k, top_p, min_p = given["top_k"], given["top_p"], given["min_p"]
        settings = cls(
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=(
                config.context_length
                if max_prompt_tokens is None
                else max_prompt_tokens
            ),
            stop_ids=tuple(lm.stop_ids if stop_ids is None else stop_ids),
            temperature=given["temperature"],
            top_k=0 if top_k is None else top_k,
            top_p=1.0 if top_p is None else top_p,
            seed=given["seed"],
            min_p=0.0 if min_p is None else min_p,
            repetition_penalty=given["repetition_penalty"],
            weights=weights,
            flavour=flavour,
            batch_sizes=tuple(batch_sizes),
        )
        settings._check_values(config)
        return settings

    def _check_values(self, config):
        most = 2**31 - 1
        length = config.context_length
        _check_number(self, "max_new_tokens", Integral, 1, 2**20)
        _check_number(self, "max_prompt_tokens", Integral, 1, length)
        _check_number(self, "temperature", Real, 0, math.inf)
        _check_number(self, "top_k", Integral, 0, most)
        _check_number(self, "top_p", Real, 0, 1)
        _check_number(self, "min_p", Real, 0, 1)
        _check_number(self, "repetition_penalty", Real, 0, math.inf)
        _check_number(self, "seed", Integral, 0, most)
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise ValueError(f"`{name}` must be above 0. Received: {name}=0.")
        check_stop_ids(self.stop_ids, config.vocab_size)
        if self.weights not in (None, *WEIGHTS):
            raise ValueError(
                f"Unknown `weights`. {suggest('weights', self.weights, WEIGHTS)}"
            )
        if self.flavour not in FLAVOURS:
            raise ValueError(
                f"Unknown `flavour`. {suggest('flavour', self.flavour, FLAVOURS)}"
            )
        for size in self.batch_sizes:
            if not isinstance(size, Integral) or not 1 <= size <= 4096:
                raise ValueError(
                    "`batch_sizes` must be integers from 1 to 4096. Received: "
                    f"batch_sizes={self.batch_sizes!r}."
                )


def _check_number(settings, name, kind, least, most):
    value = getattr(settings, name)
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and least <= value <= most):
        what = "an integer" if kind is Integral else "a number"
        limit = f" and at most {most}" if math.isfinite(most) else ""
        raise ValueError(
            f"`{name}` must be {what} of at least {least}{limit}. Received: "
            f"{name}={value!r}."
        )
