"""Tokenize a stream of texts on all cores, in order."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from keras_gpt.data.corpus import Piece

# A worker takes a second or two to start: less text than this is not worth it.
IN_PROCESS_CHARACTERS = 4_000_000


class Task(NamedTuple):
    """Pieces of one split that are tokenized together."""

    split: str
    pieces: list[Piece]


class Tokens(NamedTuple):
    """The token ids of a task.

    Attributes:
        token_ids: All ids, in order.
        document_ends: Offsets into `token_ids` after which a document ends.
        num_characters: Length of the text.
        num_bytes: Length of the text in UTF-8.
    """

    token_ids: np.ndarray
    document_ends: np.ndarray
    num_characters: int
    num_bytes: int


def tokenize(tokenizer: Any, pieces: list[Piece]) -> Tokens:
    """Tokenize pieces, with the end-of-text token after each document.

    Raises:
        ValueError: The tokenizer gave an id outside its vocabulary.
    """
    lists = tokenizer.encode_batch([piece.text for piece in pieces])
    if tokenizer.end_of_text_id is not None:
        lists = [
            [*ids, tokenizer.end_of_text_id] if piece.ends_document else ids
            for ids, piece in zip(lists, pieces, strict=True)
        ]
    ends = np.cumsum([len(ids) for ids in lists], dtype=np.int64)
    token_ids = np.fromiter(chain.from_iterable(lists), np.int64, count=ends[-1])
    vocab_size = tokenizer.vocab_size
    if len(token_ids) and not 0 <= token_ids.min() <= token_ids.max() < vocab_size:
        raise ValueError(
            f"`tokenizer` must give ids from 0 to vocab_size - 1 = {vocab_size - 1}. "
            f"Received: ids from {token_ids.min()} to {token_ids.max()}. "
            "Its vocab_size must count the special tokens too."
        )
    return Tokens(
        token_ids.astype(token_dtype(vocab_size)),
        ends[[piece.ends_document for piece in pieces]],
        sum(len(piece.text) for piece in pieces),
        sum(len(piece.text.encode("utf-8")) for piece in pieces),
    )


def token_dtype(vocab_size: int) -> np.dtype:
    """Give the smallest integer type of the token files: uint16 or uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def tokenize_tasks(
    tasks: Iterable[Task], tokenizer: Any, num_workers: int
) -> Iterator[tuple[Task, Tokens]]:
    """Tokenize tasks in order, at first here and then in worker processes.

    Args:
        tasks: The tasks; they are drawn only as fast as results are taken, so
            that memory stays flat.
        tokenizer: Any tokenizer that can be pickled.
        num_workers: How many processes; 1 is this one.

    Yields:
        Each task with its tokens.

    Raises:
        RuntimeError: A worker died.
    """
    tasks = iter(tasks)
    num_characters = 0
    while num_workers == 1 or num_characters < IN_PROCESS_CHARACTERS:
        task = next(tasks, None)
        if task is None:
            return
        tokens = tokenize(tokenizer, task.pieces)
        num_characters += tokens.num_characters
        yield task, tokens
    first = next(tasks, None)
    if first is None:
        return
    with _start_workers(tokenizer, num_workers) as submit:
        pending: deque = deque()
        for task in chain([first], tasks):
            pending.append((task, submit(task.pieces)))
            # Twice the workers: none is idle while the oldest result is awaited.
            if len(pending) > 2 * num_workers:
                task, future = pending.popleft()
                yield task, future.result()
        for task, future in pending:
            yield task, future.result()


@contextlib.contextmanager
def _start_workers(tokenizer: Any, num_workers: int) -> Iterator[Any]:
    """Start workers and give the function that submits pieces to them.

    `multiprocessing` would import the user's script again in every worker, running
    it anew where it has no `if __name__ == "__main__"`, and forking is not safe once
    TensorFlow or JAX have started threads. So the workers are plain processes, with
    one thread here for each.
    """
    command = "from keras_gpt.data.tokenizing import serve; serve()"
    if type(tokenizer).__module__.startswith("keras_gpt."):
        # An empty package in place of ours, with the same modules in it: a worker
        # that does not load Keras is there at once, and takes a tenth of the memory.
        command = (
            "import sys, types; package = types.ModuleType('keras_gpt'); "
            f"package.__path__ = [{str(Path(__file__).parents[1])!r}]; "
            f"sys.modules['keras_gpt'] = package; {command}"
        )
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
    }
    workers: list[subprocess.Popen] = []
    idle: SimpleQueue = SimpleQueue()

    def run(pieces: list[Piece]) -> Tokens:
        worker = idle.get()
        try:
            pickle.dump(pieces, worker.stdin)
            worker.stdin.flush()
            return pickle.load(worker.stdout)
        except (EOFError, OSError) as error:
            raise RuntimeError(
                "A tokenizing process died; its own error is above, unless the "
                "system ended it for lack of memory. `num_workers=1` does without."
            ) from error
        finally:
            idle.put(worker)

    pickled = pickle.dumps(tokenizer)
    threads = ThreadPoolExecutor(num_workers)
    try:
        for _ in range(num_workers):
            worker = subprocess.Popen(
                [sys.executable, "-c", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            workers.append(worker)
            idle.put(worker)
        for worker in workers:
            with contextlib.suppress(BrokenPipeError):  # `run` reports it.
                worker.stdin.write(pickled)
        yield lambda pieces: threads.submit(run, pieces)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()
        threads.shutdown()
        for worker in workers:
            worker.wait()
            worker.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()


def serve() -> None:
    """Be a worker: a pickled tokenizer, then pieces, on stdin; tokens on stdout."""
    # Ctrl-C reaches every process of the terminal; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a tokenizer prints must not reach the pipe.
    tokenizer = pickle.load(sys.stdin.buffer)
    while True:
        try:
            pieces = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(tokenize(tokenizer, pieces), output, protocol=5)
        output.flush()
