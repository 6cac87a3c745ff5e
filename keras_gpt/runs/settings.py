"""What defines a run, from YAML and the command line."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from keras_gpt.config import suggest


class Settings:
    """A dataclass of fields that a YAML file and `NAME=VALUE` overrides set."""

    @classmethod
    def defaults_of(cls, name: str) -> dict[str, Any]:
        """What a field of fields holds when one of them is set alone."""
        del name
        return {}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Make a configuration from what a YAML file holds.

        Raises:
            ValueError: A field is unknown or its value has the wrong type.
        """
        hints = typing.get_type_hints(cls)
        for name in fields:
            if name not in hints:
                raise ValueError(
                    f"Unknown field of a run. {suggest('field', name, hints)}"
                )
        return cls(**{n: _convert(n, v, hints[n]) for n, v in fields.items()})

    @classmethod
    def from_yaml(cls, path: str | Path | None, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file and put `NAME=VALUE` overrides on top.

        Args:
            path: The file, or `None` for the defaults.
            overrides: Such as `learning_rate=3e-4` or `model.num_layers=8`.

        Raises:
            ValueError: The file is not YAML, or a field is wrong.
        """
        import yaml

        fields: dict[str, Any] = {}
        if path is not None:
            try:
                fields = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
            except yaml.YAMLError as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{path} is not valid YAML: {reason}.") from error
            if not isinstance(fields, dict):
                raise ValueError(f"{path} must hold `name: value` lines.")
        for override in overrides:
            name, equals, value = override.partition("=")
            if not equals:
                raise ValueError(
                    f"Overrides look like NAME=VALUE. Received: {override!r}."
                )
            place = fields
            *parents, name = name.split(".")
            for parent in parents:
                place = place.setdefault(parent, cls.defaults_of(parent))
                if not isinstance(place, dict):
                    raise ValueError(
                        f"`{parent}` has no fields of its own. Received: {override!r}."
                    )
            try:
                place[name] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ValueError(
                    f"The value isn't valid YAML. Received: {override!r}. Put a text "
                    f"with special characters into quotes: {name}='\"...\"'."
                ) from error
        return cls.from_dict(fields)


@dataclasses.dataclass(kw_only=True)
class Recipe(Settings):
    """What every run hands on to `training.compile_model`, besides a learning rate.

    A run's own class documents the fields, some of whose defaults it changes.
    """

    final_learning_rate: float | None = None
    warmup_steps: int | None = None
    schedule: str = "cosine"
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.95
    clip_norm: float | None = 1.0
    accumulation_steps: int = 1
    ema_momentum: float | None = None
    jit_compile: bool | None = None

    def arguments(self) -> dict[str, Any]:
        """These fields, as arguments of `compile_model`."""
        names = [field.name for field in dataclasses.fields(Recipe)]
        return {name: getattr(self, name) for name in names}


def check_steps(config: Any) -> None:
    """Check the numbers that all runs have; validate at the end of a short one.

    Raises:
        ValueError: One isn't positive, or they don't fit each other.
    """
    for name in ("steps", "batch_size", "evaluate_every"):
        if getattr(config, name) < 1:
            raise ValueError(
                f"`{name}` must be a positive integer. Received: "
                f"{name}={getattr(config, name)}."
            )
    config.evaluate_every = min(config.evaluate_every, config.steps)
    if config.steps % config.evaluate_every:
        nearest = round(config.steps / config.evaluate_every) * config.evaluate_every
        raise ValueError(
            "`steps` must be a multiple of `evaluate_every`. Received: "
            f"steps={config.steps}, evaluate_every={config.evaluate_every}. "
            f"Try steps={nearest}."
        )


def _convert(name, value, hint):
    """Convert what YAML read to the field's type; YAML takes 1e-3 for a text."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    try:
        if kind is int and not isinstance(value, bool) and float(value).is_integer():
            return int(float(value))
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is bool and isinstance(value, bool):
            return value
        if kind is str and isinstance(value, str | int | float):
            return str(value)
        if kind is dict and isinstance(value, dict):
            return value
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"`{name}` must be of type {kind.__name__}. Received: {name}={value!r}."
    )
