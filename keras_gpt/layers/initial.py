"""What a model starts from: initial weights and dropout seeds."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from contextvars import ContextVar

_given = ContextVar("given", default=None)


@contextmanager
def given_values(readers: Iterable[Callable]):
    """Let the `Normal`s of what is built take values instead of drawing them.

    So a pretrained model needs neither the time nor the memory for values that would
    be replaced.

    Args:
        readers: For each matrix, in the order of building, a function from its shape
            and dtype to its values, a NumPy array.
    """
    token = _given.set(iter(readers))
    try:
        yield
    finally:
        _given.reset(token)


def has_given_values() -> bool:
    """Whether what is built now takes values that `given_values` was given."""
    return _given.get() is not None
