"""Tokenize a stream of texts on all cores, or many machines, in order."""

import functools
import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from keras_gpt.cluster import connected
from keras_gpt.data.corpus import Piece


class Task(NamedTuple):
    """Pieces of one split that are tokenized together.

    Attributes:
        place: `item` and `start` of the part of the corpus that they are of.
        split: The split.
        pieces: The pieces.
    """

    place: tuple[int, int]
    split: str
    pieces: list[Piece]


class Tokens(NamedTuple):
    """The token ids of a task.

    Attributes:
        token_ids: All ids, in order.
        document_ends: Offsets into `token_ids` after which a document ends.
        counts: Of documents, pieces, characters and bytes in UTF-8, by name.
        num_source_bytes: How much of the source it took to read.
    """

    token_ids: np.ndarray
    document_ends: np.ndarray
    counts: dict[str, int]
    num_source_bytes: int


class Done(NamedTuple):
    """A task that is done.

    Attributes:
        place: As of the task.
        split: As of the task.
        tokens: Of its pieces.
    """

    place: tuple[int, int]
    split: str
    tokens: Tokens


def tokenize(tokenizer: Any, pieces: list[Piece]) -> Tokens:
    """Tokenize pieces, with the end-of-text token after each document.

    Raises:
        ValueError: The tokenizer gave an id outside its vocabulary.
    """
    lists = tokenizer.encode_batch([piece.text for piece in pieces])
    end_of_text_id = tokenizer.end_of_text_id
    joined = array("q")  # of a list it takes half as long as NumPy
    ends = []
    for ids, piece in zip(lists, pieces, strict=True):
        if isinstance(ids, np.ndarray):
            joined.frombytes(ids.astype(np.int64).tobytes())
        else:
            joined.fromlist(list(ids))
        if piece.ends_document:
            if end_of_text_id is not None:
                joined.append(end_of_text_id)
            ends.append(len(joined))
    token_ids = np.frombuffer(joined, np.int64)
    vocab_size = tokenizer.vocab_size
    if len(token_ids) and not 0 <= token_ids.min() <= token_ids.max() < vocab_size:
        raise ValueError(
            f"`tokenizer` must give ids from 0 to vocab_size - 1 = {vocab_size - 1}. "
            f"Received: ids from {token_ids.min()} to {token_ids.max()}. "
            "Its vocab_size must count the special tokens too."
        )
    counts = {
        "num_documents": len(ends),
        "num_characters": sum(len(piece.text) for piece in pieces),
        "num_bytes": sum(len(piece.text.encode("utf-8")) for piece in pieces),
        "num_pieces": len(pieces),
    }
    token_ids, ends = (
        token_ids.astype(token_dtype(vocab_size)),
        np.array(ends, np.int64),
    )
    num_source_bytes = sum(piece.num_source_bytes for piece in pieces)
    return Tokens(token_ids, ends, counts, num_source_bytes)


def token_dtype(vocab_size: int) -> np.dtype:
    """Give the smallest integer type of the token files: uint16 or uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _tokenize_task(tokenizer, task):
    return Done(task.place, task.split, tokenize(tokenizer, task.pieces))


def tokenize_in_threads(
    tasks: Iterable[Task], tokenizer: Any, num_workers: int
) -> Iterator[Done]:
    """Tokenize tasks in threads, in order.

    The libraries let go of Python's lock while they encode, so that threads are as
    fast as processes, and need no start, no pickles and no second copy.

    Args:
        tasks: The tasks; they are drawn only as fast as results are taken, so
            that memory stays flat.
        tokenizer: Any tokenizer that threads may share.
        num_workers: How many threads.

    Yields:
        What came of each task.
    """
    threads = ThreadPoolExecutor(num_workers)
    pending: deque = deque()
    try:
        for task in tasks:
            pending.append(threads.submit(_tokenize_task, tokenizer, task))
            # Twice the workers: none is idle while the oldest result is awaited.
            if len(pending) > 2 * num_workers:
                yield pending.popleft().result()
        for future in pending:
            yield future.result()
    finally:
        threads.shutdown(cancel_futures=True)


def tokenize_on_ray(
    readers: Iterable[Callable[[], Iterable[Task]]],
    tokenizer: Any,
    num_workers: int | None = None,
    address: str | None = None,
) -> Iterator[Done]:
    """Tokenize on a Ray cluster, in order.

    Each reader is called by a Ray task, which sends tokens as it has them: what
    readers read never passes through this process. Workers that are ahead wait in the
    object store, which goes to disk when it is full.

    Args:
        readers: Give tasks; pickled.
        tokenizer: Any tokenizer that can be pickled.
        num_workers: CPUs of a cluster that is started; `None` for all cores.
        address: Of a running cluster; see `keras_gpt.cluster.connected`.

    Yields:
        What came of each task.
    """
    with connected(address, num_workers) as ray:
        shared = ray.put(tokenizer)
        run = ray.remote(_tokenize_read)
        limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        running: deque = deque()
        try:
            for reader in readers:
                # In a list it is no copy for each task, but a name for what is there
                running.append(run.remote(reader, [shared]))
                if len(running) > limit:
                    yield from map(ray.get, running.popleft())
            while running:
                yield from map(ray.get, running.popleft())
        finally:
            for generator in running:
                ray.cancel(generator)


def _tokenize_read(reader, shared):
    """What a Ray task does."""
    # One core is what it has; the library asks for this each time
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = _fetch(*shared)
    for task in reader():
        yield _tokenize_task(tokenizer, task)


@functools.lru_cache(1)
def _fetch(shared):
    """A tokenizer, made once in each process."""
    import ray

    return ray.get(shared)
