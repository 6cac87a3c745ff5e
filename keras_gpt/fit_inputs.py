"""What `fit` and its kin are given: checked before it is computed with, and counted."""

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_gpt.loss import count_tokens, counted, num_counted
from keras_gpt.token_ids import as_array, check_batch


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


def check_shared(num_rows: int, batch_size: int) -> None:
    """Raise `ValueError` unless the devices of a distribution can share each batch.

    Args:
        num_rows: Of all batches, as this process reads them.
        batch_size: Rows in one, but for the last.
    """
    spread = keras.distribution.distribution()
    if spread is None:
        return
    parts = spread.num_model_replicas
    parts //= min(parts, spread.num_processes)  # of them in this process
    for size in (min(num_rows, batch_size), num_rows % batch_size):
        if size % parts:
            raise ValueError(
                f"Each batch is shared by {parts} devices, so its rows must be a "
                f"multiple of {parts}. Received: a batch of {size} rows. Take another "
                "`batch_size`, and leave out or pad a smaller last batch."
            )


class CheckedModel(keras.Model):
    """A model of token ids that checks what `fit` and its kin are given.

    Its `config` has `vocab_size` and `context_length`. Targets may be left out: then
    each id is the target of those before it. The loss of several batches is the mean
    over their tokens, as is a step of those that are accumulated.
    """

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        mean_loss = next(metric for metric in self.metrics if metric.name == "loss")
        update = mean_loss.update_state

        def update_by_tokens(values, sample_weight=None):
            count = num_counted()
            return update(values, sample_weight if count is None else count)

        mean_loss.update_state = update_by_tokens

    def train_step(self, *state_and_batch):
        with self._counting_tokens(state_and_batch[-1]):
            return super().train_step(*state_and_batch)

    def test_step(self, *state_and_batch):
        with self._counting_tokens(state_and_batch[-1]):
            return super().test_step(*state_and_batch)

    def _counting_tokens(self, batch):
        """Let a step know how many tokens of a batch count, as a float32 scalar."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        y = x[:, 1:] if y is None else y
        return counted(count_tokens(self.loss, y, sample_weight))

    def fit(self, x=None, y=None, *args, validation_data=None, **kwargs):
        """Train, as `keras.Model.fit`, on data that is checked first.

        Args:
            x: Token ids, integers `(batch, sequence)`, or a dataset of batches. An
                epoch of those of `keras_gpt.data` is one pass over them.
            y: For each id the one that follows, of the same shape. Defaults to `x`
                one ahead, so that `fit(ids)` trains; the batches of a dataset may
                leave them out too.
            *args: Others of `keras.Model.fit`.
            validation_data: As of `keras.Model.fit`, with targets or without.
            **kwargs: Others of `keras.Model.fit`.

        Returns:
            The `History` of `keras.Model.fit`.

        Raises:
            ValueError: Ids are out of range, or shapes don't fit: in arrays at once,
                in grain datasets and generators in the batch that is drawn, in other
                datasets if the first batch shows it.
        """
        self._check_compiled()
        with errors_as_found(self) as found:
            weight, size = kwargs.get("sample_weight"), _batch_size(args, kwargs)
            x, y = self._checked(repeated(x, kwargs), y, weight, found, size)
            if isinstance(validation_data, tuple):
                size = kwargs.get("validation_batch_size") or size
                pair = self._checked(*validation_data, batch_size=size)
                validation_data = (*pair, *validation_data[2:])
            elif validation_data is not None:
                fill_steps(kwargs, "validation_steps", validation_data)
                validation_data, _ = self._checked(validation_data, found=found)
            return super().fit(x, y, *args, validation_data=validation_data, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Measure the loss, as `keras.Model.evaluate`; data as of `fit`."""
        self._check_compiled()
        with errors_as_found(self) as found:
            # in `fit`, Keras holds the data of validations, which was checked there
            if not kwargs.get("_use_cached_eval_dataset"):
                fill_steps(kwargs, "steps", x)
                weight, size = kwargs.get("sample_weight"), _batch_size(args, kwargs)
                x, y = self._checked(x, y, weight, found, size)
            return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """Logits, as `keras.Model.predict`, of ids that are checked."""
        with errors_as_found(self) as found:
            fill_steps(kwargs, "steps", x)
            size = _batch_size(args, kwargs)
            x, _ = self._checked(x, found=found, batch_size=size)
            return super().predict(x, *args, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """Train on a batch, as `keras.Model.train_on_batch`; data as of `fit`."""
        self._check_compiled()
        x, y = self._checked(x, y, sample_weight)
        return super().train_on_batch(x, y, sample_weight, **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """The loss of a batch, as `keras.Model.test_on_batch`; data as of `fit`."""
        self._check_compiled()
        x, y = self._checked(x, y, sample_weight)
        return super().test_on_batch(x, y, sample_weight, **kwargs)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        if y is None:
            y, y_pred = x[:, 1:], y_pred[:, :-1]
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if y is None:
            y, y_pred = x[:, 1:], y_pred[:, :-1]
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _check_compiled(self):
        if not self.compiled:
            raise ValueError(
                "The model isn't compiled yet. Call model.compile() before, or "
                "keras_gpt.training.compile_model(model, learning_rate, ...)."
            )

    def _checked(self, x, y=None, sample_weight=None, found=None, batch_size=None):
        """What to give Keras for inputs and targets, or for a dataset, checked."""
        if isinstance(x, list | tuple):
            x = as_array(x, "x")
        if not hasattr(x, "shape"):
            return checked(self._check_batch, x, found), y
        if isinstance(y, list | tuple):
            y = as_array(y, "y")
        self._check_batch(x, y, sample_weight, batch_size)
        return x, y

    def _check_batch(self, x, y=None, sample_weight=None, batch_size=None):
        loss = getattr(self, "loss", None)  # none before `compile`
        is_of_ids = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
        check_batch(
            x,
            y,
            sample_weight,
            vocab_size=self.config.vocab_size,
            context_length=self.config.context_length,
            targets_are_ids=is_of_ids and loss.ignore_class is None,
        )
        if hasattr(x, "shape"):
            check_shared(x.shape[0], batch_size or x.shape[0])


def _batch_size(args, options):
    """That of arrays which `fit` or its kin are given with these other arguments."""
    return next(iter(args), None) or options.get("batch_size") or 32
