"""From documents to token files."""

import errno
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from keras_gpt.config import check_choice
from keras_gpt.data.batches import check_at_least
from keras_gpt.data.corpus import Corpus, Part, Piece
from keras_gpt.data.shards import (
    METADATA_NAME,
    PROGRESS_NAME,
    STATE,
    SplitWriter,
    read_metadata,
)
from keras_gpt.data.tokenizing import (
    Done,
    Task,
    token_dtype,
    tokenize_in_threads,
    tokenize_on_ray,
)
from keras_gpt.files import locked, matches, read_json, write_json

_FORMAT_VERSION = 1
_TASK_CHARACTERS = 400_000
_TASK_PIECES = 1000
_FEW_DOCUMENTS = 20
# How far a run came: what is written of each split; the part of the corpus that it is
# in, with what was written before that
_PROGRESS = {
    "states": dict,
    "place": [int],
    "before": dict,
    "num_source_bytes": int,
    "num_train_characters": int | None,
}
Reader = Callable[[], Iterable[Task]]


def prepare(
    source: str | Path | Iterable[str | Path],
    directory: str | Path,
    tokenizer: Any,
    *,
    validation_fraction: float = 0.1,
    split: str = "auto",
    text_field: str = "text",
    encoding: str = "utf-8",
    shard_size: int = 2**26,
    engine: str = "threads",
    num_workers: int | None = None,
    ray_address: str | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Tokenize a corpus into `train` and `val` token files.

    Memory stays flat however large the corpus is. Killed and started again with the
    same arguments it goes on where it was, in the file where it was, and the files
    come out the same to the byte, whatever does the work; on a directory that is
    complete it returns at once.

    Args:
        source: Where the documents are: `"embedded"`, a path or an iterable; see
            `keras_gpt.data.Corpus`.
        directory: Where the token files go.
        tokenizer: A tokenizer of `keras_gpt`, or any object that threads may share and
            has `encode_batch(texts)`, which gives lists or arrays, `vocab_size`,
            `end_of_text_id` and `fingerprint`. Its end-of-text token, if it has one,
            is added after each document.
        validation_fraction: How much of the corpus becomes `val`; 0 for none.
        split: `"tail"`: the last characters of the corpus are for validation.
            `"documents"`: whole documents are, chosen by a hash of their text, so
            that adding documents moves none to the other side, and equal documents
            are on the same. `"auto"`: `"tail"` where the source is known to have
            fewer than 20 documents, such as one text file, else `"documents"`.
        text_field: The field that holds the text in JSON Lines and Parquet files.
        encoding: The encoding of text and JSON Lines files.
        shard_size: Tokens in one file.
        engine: What tokenizes: `"threads"` of this process; or `"ray"`, tasks of a
            Ray cluster, which also read the files. (What `split="tail"` cuts is read
            here.)
        num_workers: How many threads tokenize, or CPUs of a cluster that is started;
            None for one on each core. The result does not depend on it.
        ray_address: Of a running cluster, such as `"auto"`. Defaults to the
            environment's `RAY_ADDRESS`, else one is started on this machine.
        progress: Whether to show a progress bar on stderr.
        overwrite: Whether to replace what another `prepare` left in `directory`.

    Returns:
        The metadata, also in `metadata.json`: counts of tokens, documents,
        characters and UTF-8 bytes for each split, vocabulary, source, checksums.

    Raises:
        FileNotFoundError: The source does not exist.
        ImportError: Ray is missing, or what fsspec needs to read the source.
        ValueError: A bad argument; an empty corpus or split; a file that is not
            text; a directory that holds other data.
        BlockingIOError: Another process writes into the directory.
        OSError: Writing failed, for example on a full disk. Nothing is lost: the
            same call goes on from there.

    Example:

    ```python
    tokenizer = keras_gpt.CharacterTokenizer.train(["To be, or not to be"])
    metadata = keras_gpt.data.prepare("hamlet.txt", "data/hamlet", tokenizer)
    metadata["splits"]["train"]["num_tokens"]
    ```
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(
            "`validation_fraction` must be at least 0 and below 1. "
            f"Received: validation_fraction={validation_fraction}."
        )
    check_choice("split", split, ("auto", "tail", "documents"))
    check_choice("engine", engine, ("threads", "ray"))
    check_at_least(1, shard_size=shard_size, num_workers=num_workers)
    directory = Path(directory)
    corpus = Corpus(source, text_field=text_field, encoding=encoding)
    if split == "auto":
        is_small = (corpus.num_documents or _FEW_DOCUMENTS) < _FEW_DOCUMENTS
        split = "tail" if is_small else "documents"
    if split == "tail" and corpus.describe() is None:
        raise ValueError(
            "`split='tail'` reads the source twice, so it must be a list or files. "
            "Received: an iterator. Pass a list, or `split='documents'`."
        )
    recipe = {
        "format_version": _FORMAT_VERSION,
        "source": corpus.describe(),
        "text_field": text_field,
        "encoding": encoding,
        "split": split,
        "validation_fraction": validation_fraction,
        "shard_size": shard_size,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text_id": tokenizer.end_of_text_id,
        "dtype": token_dtype(tokenizer.vocab_size).name,
    }
    # What is complete needs no lock: its folder may be read-only
    if not overwrite and (complete := _find_complete(directory, recipe)):
        return complete
    with locked(directory), _explain_write_errors(directory):
        if overwrite:
            _remove(directory)
        elif complete := _find_complete(directory, recipe):  # by now
            return complete

        def tokenize(readers):
            if engine == "ray":
                return tokenize_on_ray(readers, tokenizer, num_workers, ray_address)
            tasks = itertools.chain.from_iterable(reader() for reader in readers)
            num_threads = num_workers or os.cpu_count() or 1
            return tokenize_in_threads(tasks, tokenizer, num_threads)

        return _write(directory, recipe, corpus, tokenizer, tokenize, progress)


def _write(
    directory: Path,
    recipe: dict[str, Any],
    corpus: Corpus,
    tokenizer: Any,
    tokenize: Callable[[Iterable[Reader]], Iterator[Done]],
    progress: bool,
) -> dict[str, Any]:
    found = _find_progress(directory, recipe) or _begin(corpus, recipe)
    shard_size = recipe["shard_size"]
    dtype = token_dtype(tokenizer.vocab_size)
    writers = {
        name: SplitWriter(directory, name, dtype, shard_size, found["states"].get(name))
        for name in (("train", "val") if recipe["validation_fraction"] else ("train",))
    }
    with ExitStack() as stack:
        for writer in writers.values():
            stack.callback(writer.close)
        advance = stack.enter_context(_progress_bar(corpus.num_bytes, progress))
        advance(found["num_source_bytes"], 0)
        done = {name: writer.counts["num_pieces"] for name, writer in writers.items()}
        tokenized = tokenize(_readers(corpus, recipe, found, done))
        stack.enter_context(closing(tokenized))  # at once, when writing fails
        num_unsaved = 0
        for place, split, tokens in tokenized:
            if list(place) != found["place"]:  # all before this part is written
                found["place"] = list(place)
                found["before"] = {n: dict(w.counts) for n, w in writers.items()}
            if num_unsaved >= min(shard_size, 2**24):
                found["states"] = {n: writer.save() for n, writer in writers.items()}
                write_json(directory / PROGRESS_NAME, {**recipe, **found})
                num_unsaved = 0
            writers[split].append(tokens)
            num_unsaved += len(tokens.token_ids)
            found["num_source_bytes"] += tokens.num_source_bytes
            advance(tokens.num_source_bytes, len(tokens.token_ids))
        _check_not_empty(directory, writers, recipe)
        splits = {name: writer.finish() for name, writer in writers.items()}
    metadata = {**recipe, "splits": splits}
    write_json(directory / METADATA_NAME, metadata)
    (directory / PROGRESS_NAME).unlink(missing_ok=True)
    return metadata


def _begin(corpus: Corpus, recipe: dict[str, Any]) -> dict[str, Any]:
    """What is known before anything is done."""
    num_train = None
    if recipe["validation_fraction"] and recipe["split"] == "tail":
        num_characters = sum(len(piece.text) for piece in corpus.pieces())
        num_train = int((1 - recipe["validation_fraction"]) * num_characters)
    return {
        "states": {},
        "place": [0, 0],
        "before": {},
        "num_source_bytes": 0,
        "num_train_characters": num_train,
    }


def _readers(
    corpus: Corpus, recipe: dict[str, Any], found: dict[str, Any], done: dict[str, int]
) -> Iterator[Reader]:
    """Yield what reads the parts of a corpus from where an earlier run came to.

    A part alone doesn't know where the tail begins: it is read here, and what the
    readers give is in them.
    """
    before = {name: found["before"].get(name, {}) for name in done}
    skip = {name: done[name] - before[name].get("num_pieces", 0) for name in done}
    parts = corpus.parts(*found["place"])
    if found["num_train_characters"] is not None:
        num_left = found["num_train_characters"]
        num_left -= before["train"].get("num_characters", 0)
        for task in _group(_cut_off_tail(corpus, parts, num_left), skip):
            yield partial(iter, [task])
        return
    read = corpus.without_sources().read
    for part in parts:
        yield partial(_read_part, read, part, recipe["validation_fraction"], skip)
        skip = dict.fromkeys(skip, 0)


def _read_part(
    read: Callable[[Part], Iterator[Piece]],
    part: Part,
    fraction: float,
    skip: dict[str, int],
) -> Iterator[Task]:
    place = part.item, part.start
    return _group(
        ((place, *pair) for pair in _choose_documents(read(part), fraction)), skip
    )


def _choose_documents(
    pieces: Iterator[Piece], fraction: float
) -> Iterator[tuple[str, Piece]]:
    """Give pieces the names of their splits, by a hash of their documents' begin."""
    starts_document = True
    name = "train"
    for piece in pieces:
        if starts_document and fraction:
            digest = hashlib.sha256(piece.text.encode("utf-8")).digest()
            is_val = int.from_bytes(digest[:8], "big") < fraction * 2**64
            name = "val" if is_val else "train"
        starts_document = piece.ends_document
        yield name, piece


def _cut_off_tail(
    corpus: Corpus, parts: Iterable[Part], num_left: int
) -> Iterator[tuple[tuple[int, int], str, Piece]]:
    """Give pieces their places and names of splits: `val` is what `num_left` leaves."""
    for part in parts:
        place = part.item, part.start
        for piece in corpus.read(part):
            train, val = piece.text[:num_left], piece.text[num_left:]
            num_left -= len(train)
            if train:
                ends = piece.ends_document or num_left == 0
                yield place, "train", Piece(train, ends, piece.num_source_bytes)
            if val:
                num_source_bytes = 0 if train else piece.num_source_bytes
                yield place, "val", Piece(val, piece.ends_document, num_source_bytes)


def _group(
    pieces: Iterable[tuple[tuple[int, int], str, Piece]], skip: dict[str, int]
) -> Iterator[Task]:
    """Group pieces of one place and split into tasks, leaving out first, done ones."""
    skip = dict(skip)
    for place, at_place in itertools.groupby(pieces, key=lambda piece: piece[0]):
        groups: dict[str, list[Piece]] = {name: [] for name in skip}
        sizes = dict.fromkeys(skip, 0)
        for _, name, piece in at_place:
            if skip[name]:
                skip[name] -= 1
                continue
            groups[name].append(piece)
            sizes[name] += len(piece.text)
            if sizes[name] >= _TASK_CHARACTERS or len(groups[name]) >= _TASK_PIECES:
                yield Task(place, name, groups[name])
                groups[name], sizes[name] = [], 0
        for name, group in groups.items():
            if group:
                yield Task(place, name, group)


def _find_complete(directory: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Read the metadata of data that are prepared to the end, if they are."""
    if not (directory / METADATA_NAME).is_file():
        return None
    metadata = read_metadata(directory)
    _check_recipe(directory, recipe, metadata)
    (directory / PROGRESS_NAME).unlink(missing_ok=True)
    return metadata


def _find_progress(directory: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Read how far an earlier run came, or clear what it left before it could save."""
    path = directory / PROGRESS_NAME
    if not path.is_file():
        _remove(directory)
        return None
    found = read_json(path)
    if not matches(found, _PROGRESS) or not all(
        matches(state, STATE) for state in found["states"].values()
    ):
        raise ValueError(f"{path} is damaged. Start afresh with `overwrite=True`.")
    _check_recipe(directory, recipe, found)
    return {name: found[name] for name in _PROGRESS}


def _check_recipe(directory: Path, recipe: dict[str, Any], found: Any) -> None:
    different = [key for key in recipe if found.get(key) != recipe[key]]
    if recipe["source"] is None:
        different = ["source (an iterator cannot be compared)"]
    if different:
        raise ValueError(
            f"{directory} holds data prepared with another {', '.join(different)}. "
            "Choose another `directory`, or replace it by `overwrite=True`."
        )


def _remove(directory: Path) -> None:
    """Remove what `prepare` writes, `metadata.json` first, and nothing else."""
    paths = [directory / METADATA_NAME, directory / PROGRESS_NAME]
    for name in ("train", "val"):
        paths += [directory / f"{name}-documents.bin"]
        paths += sorted(directory.glob(f"{name}-[0-9][0-9][0-9][0-9][0-9].bin"))
    for path in paths:
        path.unlink(missing_ok=True)


def _check_not_empty(
    directory: Path, writers: dict[str, SplitWriter], recipe: dict[str, Any]
) -> None:
    empty = [name for name, w in writers.items() if not w.counts["num_tokens"]]
    if not empty:
        return
    for writer in writers.values():
        writer.close()
    _remove(directory)
    if len(empty) == len(writers):
        raise ValueError("The corpus is empty: `source` holds no text.")
    fraction = recipe["validation_fraction"]
    raise ValueError(
        f"The split {empty[0]!r} got no text with validation_fraction={fraction} and "
        f"split={recipe['split']!r}. Prepare more text, take `split='tail'`, or "
        "`validation_fraction=0` for no validation."
    )


@contextmanager
def _explain_write_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        message = (
            f"Writing to {directory} failed: {error.strerror}. Make room and run the "
            "same again: it goes on from there"
        )
        raise OSError(error.errno, message) from error


@contextmanager
def _progress_bar(num_bytes: int | None, is_shown: bool) -> Iterator[Any]:
    """Give a function that advances the bar by bytes of source and by tokens."""
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("Tokenizing"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TextColumn("{task.fields[num_tokens]:,} tokens"),
        progress.TimeRemainingColumn(),
    )

    def advance(num_source_bytes: int, num_new_tokens: int) -> None:
        num_tokens = bar.tasks[task].fields["num_tokens"] + num_new_tokens
        bar.update(task, advance=num_source_bytes, num_tokens=num_tokens)

    console = Console(stderr=True)
    with progress.Progress(*columns, console=console, disable=not is_shown) as bar:
        task = bar.add_task("", total=num_bytes, num_tokens=0)
        yield advance
        if num_bytes is not None:  # what is skipped, such as empty lines, is done too
            bar.update(task, completed=num_bytes)
