"""What `fit` and its kin are given: checked before it is computed with, and counted."""

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras


def is_grain(data: Any) -> bool:
    """Whether it is a grain dataset; grain isn't imported where nobody else has."""
    grain = sys.modules.get("grain")
    return grain is not None and isinstance(data, grain.IterDataset | grain.MapDataset)


def fill_steps(options: dict[str, Any], name: str, data: Any) -> None:
    """Give a grain dataset's length, for which Keras doesn't ask, where none is given.

    Args:
        options: Arguments of `fit`, `evaluate` or `predict`.
        name: That of the steps.
        data: The dataset, or anything else.
    """
    if options.get(name) is None and is_grain(data) and hasattr(data, "__len__"):
        options[name] = len(data)


def repeated(data: Any, options: dict[str, Any]) -> Any:
    """A dataset of ours without end, of which an epoch is one pass; others as given.

    Args:
        data: What `fit` is given.
        options: Its other arguments, where `steps_per_epoch` and `shuffle` are set.
    """
    if is_grain(data):
        options.setdefault("shuffle", False)  # or Keras warns that it can't
        if hasattr(data, "__len__") and hasattr(data, "repeat"):
            fill_steps(options, "steps_per_epoch", data)
            return data.repeat()
    return data


@contextlib.contextmanager
def errors_as_found(model: keras.Model) -> Iterator[list[ValueError]]:
    """Raise the error that `checked` put into the list, and leave the model whole.

    TensorFlow raises one of its own around it, and Keras on JAX leaves the weights out
    of a model whose `evaluate` or `predict` is interrupted.
    """
    found = []
    try:
        yield found
    except Exception:
        if found:
            raise found[0] from None
        raise
    finally:
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()


def checked(check: Callable, data: Any, found: list[ValueError]) -> Any:
    """A dataset whose batches are checked, as far as that costs nothing.

    Those of grain datasets and generators are checked as they are drawn, of other
    datasets the first one: what they do is compiled, or done by other processes.

    Args:
        check: Takes inputs, targets and sample weights, and raises `ValueError`.
        data: As of `fit`.
        found: A list for the error.

    Returns:
        What to give Keras in its place.
    """

    def check_batch(batch):
        try:
            check(*keras.utils.unpack_x_y_sample_weight(batch))
        except ValueError as error:
            found.append(error)
            raise
        return batch

    if is_grain(data):
        return data.map(check_batch)
    if isinstance(data, types.GeneratorType):
        return (check_batch(batch) for batch in data)
    if not isinstance(data, dict | Iterator):
        check_batch(next(iter(data)))
    return data
