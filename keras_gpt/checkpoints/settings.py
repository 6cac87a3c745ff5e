"""The settings of a model in another format, checked as they are asked for."""

from collections.abc import Mapping
from typing import Any, NoReturn


class Settings:
    """Finds settings, and refuses what isn't supported.

    Args:
        values: The settings by key.
        prefix: What the keys begin with, such as `"llama."`.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = ""):
        self._values = values
        self._prefix = prefix

    def find(self, name: str, default: Any = None) -> Any:
        """The setting as it is."""
        return self._values.get(self._prefix + name, default)

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number, or one for each block if all are the same."""
        value = self.find(name, default)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        return self._check(name, value, (int,), "an integer, the same in all blocks")

    def number(self, name: str, default: float | None = None) -> float:
        """A number."""
        value = self.find(name, default)
        return float(self._check(name, value, (int, float), "a number"))

    def require(self, name: str, *values: Any) -> None:
        """Refuse the setting unless it is absent or one of the values."""
        if self._prefix + name in self._values and self.find(name) not in values:
            self.refuse(name, " or ".join(map(repr, values)) or "absent")

    def refuse(self, name: str, wanted: str) -> NoReturn:
        """Raise `ValueError` that says what the setting must be."""
        value = self.find(name)
        raise ValueError(
            f"Unsupported setting. Received: {self._prefix}{name}={value!r:.80}. It "
            f"must be {wanted}."
        )

    def _check(self, name, value, types, wanted):
        if value is None:
            name = self._prefix + name
            raise ValueError(f"It lacks the setting {name}. Download it again.")
        if type(value) not in types:
            self.refuse(name, wanted)
        return value
