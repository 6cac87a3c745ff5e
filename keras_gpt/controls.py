"""`CONTROLS`: what a caller may ask of a generation, once for all who ask or answer.

`keras_gpt.generate`, the signatures of exported models, the client and the command line
take names, defaults, ranges and messages from here. Nothing is imported that loads
Keras, so that `keras-gpt --help` can read this file alone.
"""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

MOST_NEW_TOKENS = 2**20  # a billion would be asked for by mistake, or to do harm


@dataclass(frozen=True)
class Control:
    """One control: its default, its range, what it does.

    Attributes:
        default: What `keras_gpt.generate` takes where none is given.
        help: What it does, in a sentence.
        least: Lowest value.
        most: Highest value.
        is_integer: Whether it must be a whole number.
        is_least_open: Whether `least` itself is out of range.
        off: The value with which it changes nothing, which `None` stands for; or
            `None`, where `None` is no value.
    """

    default: float | int | None
    help: str
    least: float
    most: float = math.inf
    is_integer: bool = False
    is_least_open: bool = False
    off: float | int | None = None

    @property
    def dtype(self) -> str:
        """Of its tensor."""
        return "int32" if self.is_integer else "float32"

    @property
    def wanted(self) -> str:
        """The range in words, as in "must be ..."."""
        what = "an integer" if self.is_integer else "a number"
        least = "above" if self.is_least_open else "of at least"
        most = "" if math.isinf(self.most) else f" and at most {self.most}"
        none = "" if self.off is None else ", or None"
        return f"{what} {least} {self.least}{most}{none}"

    def is_valid(self, value: Any) -> bool:
        """Whether a value, which isn't `None`, is in range."""
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        return (
            math.isfinite(value)
            and self.least <= value <= self.most
            and not (self.is_least_open and value == self.least)
            and not (self.is_integer and value != int(value))
        )


CONTROLS = {
    "max_new_tokens": Control(
        64, "Most tokens to add.", 0, MOST_NEW_TOKENS, is_integer=True
    ),
    "temperature": Control(
        0.8, "Lower is safer, higher is wilder, 0 is greedy.", 0, off=1.0
    ),
    "top_k": Control(
        40,
        "Sample from the likeliest so many.",
        1,
        is_integer=True,
        off=2**30,
    ),
    "top_p": Control(
        None,
        "Sample from the likeliest that have this probability together.",
        0,
        1,
        is_least_open=True,
        off=1.0,
    ),
    "min_p": Control(
        None,
        "Sample from what is at least this fraction as likely as the likeliest.",
        0,
        1,
        off=0.0,
    ),
    "repetition_penalty": Control(
        1.0, "Above 1, repetition becomes rarer.", 0, is_least_open=True, off=1.0
    ),
    "seed": Control(0, "The same seed gives the same text.", 0, is_integer=True),
}

# what `keras_gpt.generation.Slots` takes besides, as OpenAI's interface has it
PENALTIES = {
    "presence_penalty": Control(
        0.0, "Above 0, tokens of the answer become rarer in it.", -2, 2
    ),
    "frequency_penalty": Control(
        0.0, "Above 0, tokens become the rarer the oftener the answer has them.", -2, 2
    ),
}

# what `keras_gpt.generate` and `LanguageModel.generate` take besides
OTHER_CONTROLS = (
    "num_beams",
    "length_penalty",
    "stop",
    "stop_ids",
    "num_return_sequences",
    "lookup_tokens",
    "adapter",
)

# what an answer of a `LanguageModel` may have to be, of which one is given
FORMS = ("schema", "regex", "choices")


def check_control(name: str, value: Any) -> float | int:
    """Return a value of a control, with `None` as what it stands for.

    Args:
        name: A name in `CONTROLS` or `PENALTIES`.
        value: What a caller gave.

    Raises:
        ValueError: It is out of range.
    """
    control = CONTROLS.get(name) or PENALTIES[name]
    if value is None and control.off is not None:
        return control.off
    if not control.is_valid(value):
        raise ValueError(f"`{name}` must be {control.wanted}. Received: {value!r}.")
    return int(value) if control.is_integer else float(value)


def spread_control(name: str, value: Any, rows: int) -> list[float | int]:
    """A control's value for each row, from one for all or from a list of them.

    Args:
        name: A name in `CONTROLS`.
        value: One value, or one for each row.
        rows: How many there are.

    Raises:
        ValueError: One is out of range, or the list has another length.
    """
    is_list = hasattr(value, "__len__") and not isinstance(value, str)
    values = value if is_list else [value] * rows
    if len(values) != rows:
        raise ValueError(
            f"`{name}` must be one value or one for each of the {rows} prompts. "
            f"Received: {len(values)} values."
        )
    return [check_control(name, item) for item in values]
