"""Training batches from token files, for `fit` on every backend.

A batch is a pure function of the seed and the step: it is gathered from the memory
map when asked for, so a run can start at any step, and each of many processes can
take its rows, without reading what came before.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_gpt.config import check_choice
from keras_gpt.data.corpus import Corpus
from keras_gpt.data.packing import RowPart, fill_rows, plan_packing
from keras_gpt.data.shards import TokenDataset
from keras_gpt.data.tokenizing import tokenize

if TYPE_CHECKING:
    import grain


def load_batches(
    directory: str | Path,
    split: str,
    batch_size: int,
    sequence_length: int,
    seed: int = 0,
    *,
    start_step: int = 0,
    num_steps: int | None = None,
    order: str = "random",
    packing: str = "windows",
    drop_remainder: bool = False,
    pad_remainder: bool = False,
    vocab_size: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    verify: bool = True,
) -> "grain.IterDataset":
    """Load batches of token ids as a grain dataset that `fit` takes as it is.

    It has one pass over the split. In random order each epoch of `GPT.fit` is another
    pass, with other windows; the `fit` of another Keras model needs
    `batches.repeat()`, which has no end, and `steps_per_epoch=len(batches)`.

    Args:
        directory: A directory that `keras_gpt.data.prepare` wrote.
        split: `"train"` or `"val"`.
        batch_size: Rows in a batch, those of all processes together.
        sequence_length: Tokens in a row.
        seed: Chooses the random order.
        start_step: The step to start at, as if the steps before had been taken.
        num_steps: How many steps the dataset has. Defaults to those of one pass over
            the split, in sequential order to its end.
        order: `"random"`, or `"sequential"` for one pass from start to end, whose
            last batch may be smaller.
        packing: `"windows"`: rows are cut from the stream of tokens, one behind the
            other, in random order each epoch from another place on.
            `"documents"`: rows are whole documents, padded on the right; only those
            longer than a row are cut. Random order then visits every row once in
            each epoch. The tokenizer needs an end-of-text token, and
            `GPTConfig.document_separator_id` set to it keeps documents from seeing
            each other.
        drop_remainder: Whether a smaller last batch is left out; always so with
            several processes, unless it is padded.
        pad_remainder: Whether rows with a `sample_weight` of 0 fill it up, for devices
            that share each batch. All batches then have weights.
        vocab_size: The model's, to check that it covers the token ids.
        process_index: Which of the processes this is.
        process_count: How many processes share each batch; each gets
            `batch_size // process_count` rows of it.
        verify: Whether to read all files of the split once and compare their
            checksums: the first GB now, the rest in a thread while batches are read,
            one of which then raises the error.

    Returns:
        A `grain.IterDataset` with `len`, and `repeat()` for one without end. Its items
        are `(token_ids, targets)`, int32 of shape `(batch_size, sequence_length)`, the
        targets one token ahead; with `packing="documents"` float32 `sample_weight`s of
        the same shape come third, 0 on padding and where the next token is another
        document's.

    Raises:
        FileNotFoundError: The directory is not prepared.
        ValueError: A bad argument, a split that is shorter than a row, or a file
            that is damaged.

    Example:

    ```python
    batches = keras_gpt.data.load_batches("data/docs", "train", 12, 64)
    validation = keras_gpt.data.load_batches("data/docs", "val", 12, 64,
                                             order="sequential")
    model.fit(batches, epochs=20, validation_data=validation)
    ```
    """
    check_at_least(
        1,
        sequence_length=sequence_length,
        process_count=process_count,
    )
    check_at_least(0, seed=seed)
    if not 0 <= process_index < process_count or batch_size % process_count:
        raise ValueError(
            "`process_count` must divide `batch_size` and `process_index` be below "
            f"it. Received: batch_size={batch_size}, process_count={process_count}, "
            f"process_index={process_index}."
        )
    seed = choose_seed(order, seed)
    check_choice("packing", packing, ("windows", "documents"))
    tokens = TokenDataset(directory, split)
    if verify:
        tokens.verify_meanwhile()
    prepared = tokens.metadata["vocab_size"]
    if vocab_size is not None and prepared > vocab_size:
        raise ValueError(
            f"`vocab_size` must be at least {prepared}, that of the tokenizer which "
            f"the data was prepared with. Received: vocab_size={vocab_size}. Prepare "
            "the data with the model's tokenizer."
        )
    row_class = _PackedDocuments if packing == "documents" else _Windows
    return load_rows(
        row_class(tokens, sequence_length, seed),
        batch_size,
        start_step,
        num_steps=num_steps,
        drop_remainder=drop_remainder,
        pad_remainder=pad_remainder,
        process_index=process_index,
        process_count=process_count,
    )


def load_texts(
    source: str | Path | Iterable[str | Path],
    tokenizer: Any,
    batch_size: int,
    sequence_length: int,
    seed: int = 0,
    *,
    order: str = "random",
) -> "grain.IterDataset":
    """Load batches of texts that fit into memory, without files: for `fit` in a line.

    Args:
        source: As of `prepare`: a list of texts, for example.
        tokenizer: The model's. The ids of all texts are one stream, an end of text
            behind each, if there is one.
        batch_size: Rows in a batch.
        sequence_length: Tokens in a row.
        seed: As of `load_batches`.
        order: As of `load_batches`.

    Returns:
        A `grain.IterDataset` as of `load_batches` with `packing="windows"`.

    Raises:
        FileNotFoundError: The source does not exist.
        ValueError: As of `prepare` and `load_batches`.

    Example:

    >>> import keras_gpt
    >>> texts = ["To be, or not to be", "that is the question"]
    >>> tokenizer = keras_gpt.CharacterTokenizer.train(texts)
    >>> batches = keras_gpt.data.load_texts(texts, tokenizer, 2, 8)
    >>> len(batches), next(iter(batches))[0].shape
    (2, (2, 8))
    """
    check_at_least(1, sequence_length=sequence_length)
    check_at_least(0, seed=seed)
    seed = choose_seed(order, seed)
    tokens = tokenize(tokenizer, list(Corpus(source).pieces()))
    rows = _Windows(_TokensInMemory(tokens.token_ids), sequence_length, seed)
    return load_rows(rows, batch_size, 0)


class _TokensInMemory:
    """Ids that are read as those of a `TokenDataset` are."""

    def __init__(self, token_ids: np.ndarray):
        self._token_ids = token_ids.astype(np.int32)

    def __len__(self) -> int:
        return len(self._token_ids)

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(self._token_ids, length)[starts]


def choose_seed(order: str, seed: int) -> int | None:
    """The seed of `Rows` for an order; `ValueError` where it is unknown."""
    check_choice("order", order, ("random", "sequential"))
    return seed if order == "random" else None


class Rows(ABC):
    """Rows epoch after epoch, each time in another order, or once as they are.

    Args:
        num_rows: How many there are.
        seed: Chooses the order; `None` for once as they are.
    """

    def __init__(self, num_rows: int, seed: int | None):
        self.num_rows = num_rows
        self.seed = seed
        self._shuffled = (None, None)  # the last epoch, and which row a place has

    @abstractmethod
    def gather(self, rows: Sequence[int]) -> tuple[Any, ...]:
        """Give a batch of these rows."""

    def read(self, step: int, batch_size: int, part: slice) -> tuple[Any, ...]:
        """Give a part of the batch of a step."""
        return self.gather(self.choose(step, batch_size)[part])

    def choose(self, step: int, batch_size: int) -> Sequence[int]:
        """Say which rows the batch of a step has."""
        first, stop = step * batch_size, (step + 1) * batch_size
        if self.seed is None:
            return range(first, min(stop, self.num_rows))
        return [self._choose(place) for place in range(first, stop)]

    def _choose(self, place: int) -> int:
        epoch, index = divmod(place, self.num_rows)
        shuffled_epoch, row_at = self._shuffled
        if shuffled_epoch != epoch:
            row_at = self.shuffle(_generator(self.seed, epoch))
            # both at once, for threads that read the same batches
            self._shuffled = (epoch, row_at)
        return row_at(index)

    def shuffle(self, generator: np.random.Generator) -> Callable[[int], int]:
        """Give what says which row is in a place of an epoch."""
        rows = np.arange(self.num_rows, dtype=np.min_scalar_type(self.num_rows))
        generator.shuffle(rows)
        return rows.item


def load_rows(
    rows: Rows,
    batch_size: int,
    start_step: int,
    *,
    num_steps: int | None = None,
    drop_remainder: bool = False,
    pad_remainder: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> "grain.IterDataset":
    """Load batches of rows from a step on.

    Args:
        rows: The rows.
        batch_size: As for `load_batches`, like the rest.
        start_step: The first step.
        num_steps: How many steps.
        drop_remainder: Whether a smaller last batch is left out.
        pad_remainder: Whether it is filled up.
        process_index: Which of the processes this is.
        process_count: How many processes share each batch.

    Raises:
        ValueError: There is no whole batch, or none left at `start_step`.
    """
    from keras_gpt.data.step_dataset import StepDataset

    check_at_least(1, batch_size=batch_size, num_steps=num_steps)
    check_at_least(0, start_step=start_step)
    is_random = rows.seed is not None  # then no batch is smaller than others
    drop_remainder = drop_remainder or (process_count > 1 and not pad_remainder)
    extra = 0 if drop_remainder and not is_random else batch_size - 1
    one_pass = (rows.num_rows + extra) // batch_size
    if not one_pass:
        raise ValueError(
            f"`batch_size` must be at most {rows.num_rows}, the number of rows, where "
            f"a smaller batch is left out. Received: batch_size={batch_size}."
        )
    if start_step >= one_pass and not is_random:
        raise ValueError(
            f"`start_step` must be below the {one_pass} batches that there are. "
            f"Received: start_step={start_step}, batch_size={batch_size}."
        )
    stop_step = start_step + (num_steps or one_pass)
    if not is_random:
        stop_step = min(stop_step, one_pass)
    size = batch_size // process_count
    part = slice(process_index * size, (process_index + 1) * size)
    read = functools.partial(rows.read, batch_size=batch_size, part=part)
    if pad_remainder:
        read = functools.partial(_read_padded, read, size)
    return StepDataset(read, start_step, stop_step, goes_on=is_random)


def _read_padded(read, num_rows, step):
    """A batch with weights, and with rows of weight 0 where it has too few."""
    ids, targets, *weights = read(step)
    weights = weights or [np.ones(targets.shape, np.float32)]
    missing = [(0, num_rows - len(ids)), (0, 0)]
    return tuple(np.pad(part, missing) for part in (ids, targets, *weights))


class _Windows(Rows):
    """Windows behind each other; each random epoch cuts them at another place.

    A row is the place where a window starts. Where the text is no multiple of their
    length, the first and the last window of a random epoch share some tokens.
    """

    def __init__(
        self,
        tokens: TokenDataset | _TokensInMemory,
        sequence_length: int,
        seed: int | None,
    ):
        if len(tokens) <= sequence_length:
            raise ValueError(
                "`sequence_length` must be below the number of tokens in the split, "
                f"{len(tokens)}. Received: sequence_length={sequence_length}. Prepare "
                f"more text or take sequence_length={len(tokens) - 1} or less."
            )
        super().__init__((len(tokens) - 1) // sequence_length, seed)
        self._tokens = tokens
        self._length = sequence_length

    def choose(self, step: int, batch_size: int) -> np.ndarray:
        rows = np.asarray(super().choose(step, batch_size), np.int64)
        return rows * self._length if self.seed is None else rows

    def shuffle(self, generator: np.random.Generator) -> Callable[[int], int]:
        num_starts = len(self._tokens) - self._length
        window_at = super().shuffle(generator)
        first = int(generator.integers(num_starts))
        return lambda place: (first + window_at(place) * self._length) % num_starts

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        windows = self._tokens.gather(rows, self._length + 1)
        return windows[:, :-1], windows[:, 1:]


class _PackedDocuments(Rows):
    """Rows of whole documents."""

    def __init__(self, tokens: TokenDataset, sequence_length: int, seed: int | None):
        self._separator_id = tokens.metadata["end_of_text_id"]
        if self._separator_id is None:
            raise ValueError(
                "`packing='documents'` needs documents that end with a separator, "
                "but the data was prepared with a tokenizer without an end-of-text "
                "token. Prepare it with one that has it, or take packing='windows'."
            )
        self._tokens = tokens
        self._length = sequence_length
        self._plan = plan_packing(tokens.document_ends, sequence_length)
        super().__init__(self._plan.num_rows, seed)

    def gather(self, rows: Sequence[int]) -> tuple[np.ndarray, ...]:
        parts = [self._parts(row) for row in rows]
        return fill_rows(parts, self._length, self._separator_id)

    def _parts(self, row: int) -> Iterator[RowPart]:
        plan = self._plan
        for part in range(plan.row_splits[row], plan.row_splits[row + 1]):
            start, length = int(plan.starts[part]), int(plan.lengths[part])
            window = self._tokens[start : start + length + 1]
            # A separator ends its document: what follows it is not to be learned.
            ids = window[:length]
            yield RowPart(ids, window[1:], ids != self._separator_id)


def _generator(seed: int, step: int) -> np.random.Generator:
    # The step goes into a high word of the counter: Philox counts in the lowest, so
    # the streams of neighbouring steps would overlap there.
    return np.random.Generator(np.random.Philox(key=seed, counter=step << 128))


def check_at_least(minimum: int, **values: int | None) -> None:
    """Raise `ValueError` unless each value that there is is at least the minimum."""
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ValueError(
                f"`{name}` must be at least {minimum}. Received: {name}={value}."
            )
