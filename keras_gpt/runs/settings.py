"""What defines a run, from YAML and the command line, checked by pydantic."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from keras_gpt.config import suggest


def read_number(value):
    """Read numbers as people write them: YAML takes 1e3 for a text."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _number(kind, **limits):
    """A number's type: strict, or true would be 1."""
    return Annotated[kind, Field(strict=True, **limits), BeforeValidator(read_number)]


Bool = Annotated[bool, Field(strict=True)]
Count = _number(int, ge=1)
WholeNumber = _number(int, ge=0)
Positive = _number(float, gt=0, allow_inf_nan=False)
NotNegative = _number(float, ge=0, allow_inf_nan=False)
Fraction = _number(float, ge=0, lt=1)
Part = _number(float, gt=0, lt=1)


def _check_interval(value):
    number = read_number(value)
    is_count = type(number) is int and number > 0
    if not is_count and not re.fullmatch(r"\d+(\.\d+)?min", str(value)):
        raise ValueError("must be a number of steps, or minutes such as 10min")
    return number


Interval = Annotated[int | str, BeforeValidator(_check_interval)]


class Settings(BaseModel):
    """Fields that a YAML file and `NAME=VALUE` overrides set.

    Attributes:
        inner_fields: Names of fields inside others, such as `model.num_layers`.

    Raises:
        ValueError: A field is unknown, or its value is of the wrong type or range.
    """

    inner_fields: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    def __init__(self, **fields):
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ValueError(_explain(error.errors()[0], type(self))) from None

    @classmethod
    def from_yaml(
        cls, path: str | Path | None, overrides: Sequence[str] = (), **fields: Any
    ) -> Self:
        """Read a YAML file and put others on top.

        Args:
            path: The file, or `None` for the defaults.
            overrides: Such as `learning_rate=3e-4` or `model.num_layers=8`.
            **fields: Others, which are no YAML. `None` counts as not given.

        Raises:
            ValueError: The file is not YAML, or a field is wrong.
        """
        found = {} if path is None else _read_fields(Path(path))
        for override in overrides or ():
            _put(found, override, cls.model_fields)
        found |= {name: value for name, value in fields.items() if value is not None}
        try:
            return cls(**found)
        except ValueError as error:
            where = f"{path}: " if path and not overrides else ""
            raise ValueError(f"{where}{error}") from error

    def replaced(self, **fields: Any) -> Self:
        """The same with other values of some fields, checked again."""
        return type(self)(**{**self.model_dump(), **fields})

    @classmethod
    def schema_for_editors(cls) -> dict[str, Any]:
        """The JSON schema of the YAML file, with what docstrings say of each field."""
        schema = cls.model_json_schema()
        documents = "\n".join(part.__doc__ or "" for part in cls.__mro__)
        for name, about in schema["properties"].items():
            said = re.search(rf"\n +{name}: ((?:.|\n {{8,}}(?! *\w+: ))+)", documents)
            about["description"] = " ".join(said[1].split())
        return schema


def _read_fields(path):
    """The fields in a YAML file."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not valid YAML: {reason}.") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path} must hold `name: value` lines.")
    return found


def _put(found, override, known):
    """Put what a `NAME=VALUE` says among the fields that were found."""
    name, equals, value = override.partition("=")
    if not equals:
        raise ValueError(f"Overrides look like NAME=VALUE. Received: {override!r}.")
    place = found
    if "." in name:
        parent, _, name = name.rpartition(".")
        if parent not in found and parent in known:
            found[parent] = known[parent].get_default(call_default_factory=True)
        place = found.setdefault(parent, {})
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


def _explain(error, settings):
    """What pydantic found wrong, in one line that names the field."""
    rule = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:  # what a validator of several fields says
        return rule
    name, value = error["loc"][0], error["input"]
    if error["type"] == "extra_forbidden":
        said = suggest("field", name, settings.model_fields, settings.inner_fields)
        return f"Unknown field of a run. {said}"
    rule = rule.replace("Input should be", "must be")
    return f"`{name}` {rule}. Received: {name}={value!r}."
