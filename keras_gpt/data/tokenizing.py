"""Tokenize a stream of texts on all cores, in order."""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from keras_gpt.data.corpus import Piece


class Task(NamedTuple):
    """Pieces of one split that are tokenized together."""

    split: str
    pieces: list[Piece]


class Tokens(NamedTuple):
    """The token ids of a task.

    Attributes:
        token_ids: All ids, in order.
        document_ends: Offsets into `token_ids` after which a document ends.
        counts: Of documents, pieces, characters and bytes in UTF-8, by name.
    """

    token_ids: np.ndarray
    document_ends: np.ndarray
    counts: dict[str, int]


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
    ends = np.array(ends, np.int64)
    return Tokens(token_ids.astype(token_dtype(vocab_size)), ends, counts)


def token_dtype(vocab_size: int) -> np.dtype:
    """Give the smallest integer type of the token files: uint16 or uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def tokenize_tasks(
    tasks: Iterable[Task], tokenizer: Any, num_workers: int
) -> Iterator[tuple[Task, Tokens]]:
    """Tokenize tasks in threads, in order.

    The libraries let go of Python's lock while they encode, so that threads are as
    fast as processes, and need no start, no pickles and no second copy.

    Args:
        tasks: The tasks; they are drawn only as fast as results are taken, so
            that memory stays flat.
        tokenizer: Any tokenizer that threads may share.
        num_workers: How many threads.

    Yields:
        Each task with its tokens.
    """
    threads = ThreadPoolExecutor(num_workers)
    pending: deque = deque()
    try:
        for task in tasks:
            pending.append((task, threads.submit(tokenize, tokenizer, task.pieces)))
            # Twice the workers: none is idle while the oldest result is awaited.
            if len(pending) > 2 * num_workers:
                task, future = pending.popleft()
                yield task, future.result()
        for task, future in pending:
            yield task, future.result()
    finally:
        threads.shutdown(cancel_futures=True)
