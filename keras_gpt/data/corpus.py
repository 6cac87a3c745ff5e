"""Documents from text files, JSON Lines, Parquet, folders or Python strings."""

import codecs
import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from keras_gpt.data.embedded import embedded_corpus
from keras_gpt.data.records import iterate_records, open_source
from keras_gpt.data.sources import (
    JSON_SUFFIXES,
    RemoteFile,
    can_be_cut,
    describe,
    file_size,
    find_files,
)
from keras_gpt.tokenizers.rules import safe_cut

EMBEDDED = "embedded"
# SentencePiece is some 20% faster on pieces of this size than on a megabyte.
PIECE_CHARACTERS = 100_000
_BLOCK_BYTES = 1_000_000
# What is read at a time by whoever reads beside others: some seconds of tokenizing
PART_BYTES = 2**24


class Piece(NamedTuple):
    """A document, or a part of a long one: the parts join without separator.

    Attributes:
        text: The text, never empty.
        ends_document: Whether the document ends with this piece.
        num_source_bytes: How much of the source it took to read, for progress bars.
    """

    text: str
    ends_document: bool
    num_source_bytes: int


class Part(NamedTuple):
    """Documents that are read at a time: small sources, or what begins in a stretch.

    Attributes:
        item: Which of the corpus's sources is the first.
        start: Byte of a large file at which the stretch begins, else 0.
        sources: The sources.
        stop: Byte at which the stretch ends; `None` to read to the end.
    """

    item: int
    start: int
    sources: list[str | Path | RemoteFile]
    stop: int | None


class Corpus:
    """Documents of one source or several, read as a stream in flat memory.

    Args:
        source: `"embedded"` (`keras_gpt.data.embedded_corpus`); the path of a text
            file (`.txt`, `.md`, `.txt.gz`, no suffix: one document), of JSON Lines
            (`.jsonl`, `.jsonl.gz`), of a Parquet file, or of a folder (all such
            files in it, sorted), or a pattern (`data/*.jsonl`), also in a storage
            that fsspec reads (`"s3://bucket/folder"`, `gs://`, `https://`, ...); an
            iterable of documents; or a list that mixes `pathlib.Path`s and
            documents. In an iterable a `str` is always a document.
        text_field: The field of JSON Lines and the column of Parquet files that
            hold the text.
        encoding: The encoding of text and JSON Lines files.

    Raises:
        FileNotFoundError: A path does not exist.
        ImportError: fsspec needs a package to read such a name, such as s3fs.
        ValueError: A folder without documents; later, while reading, a file that
            is binary, in another encoding or malformed.
    """

    def __init__(
        self,
        source: str | Path | Iterable[str | Path],
        *,
        text_field: str = "text",
        encoding: str = "utf-8",
    ):
        self._text_field = text_field
        self._encoding = _check_encoding(encoding)
        if isinstance(source, str | Path):
            source = _expand(source)
        elif isinstance(source, list | tuple):
            _check_items(source)
            source = [
                part
                for item in source
                for part in (_expand(item) if isinstance(item, Path) else [item])
            ]
        elif not isinstance(source, Iterable) or isinstance(source, bytes):
            raise ValueError(
                "`source` must be a path, 'embedded' or an iterable of texts. "
                f"Received: {type(source).__name__}."
            )
        self._items = source

    @property
    def num_bytes(self) -> int | None:
        """Size of what is read, or None where only reading would tell."""
        if not self._is_list:
            return None
        sizes = [_size(item) for item in self._items]
        return None if None in sizes else sum(sizes)

    @property
    def num_documents(self) -> int | None:
        """How many documents there are, or None where only reading would tell."""
        if not self._is_list:
            return None
        if any(not isinstance(i, str) and not _is_text_file(i) for i in self._items):
            return None
        return len(self._items)

    def describe(self) -> list[dict[str, Any]] | None:
        """Say what the source is, to tell later whether another is the same.

        Returns:
            Paths with sizes and modification times, and the hash of the texts; None
            for an iterable other than a list, which cannot be read twice.
        """
        if not self._is_list:
            return None
        described: list[dict[str, Any]] = []
        num_texts, digest = 0, hashlib.sha256()
        for item in self._items:
            if not isinstance(item, str):
                described.append(describe(item))
            else:
                encoded = item.encode("utf-8", "surrogatepass")
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
                num_texts += 1
        if num_texts:
            described.append({"num_texts": num_texts, "sha256": digest.hexdigest()})
        return described

    def pieces(self) -> Iterator[Piece]:
        """Yield the documents in order, long ones in pieces of about 100 kB."""
        for item in self._items:
            _check_source(item)
            yield from self.read(Part(0, 0, [item], None))

    def parts(self, item: int = 0, start: int = 0) -> Iterator[Part]:
        """Yield parts of the corpus in order, each of which can be read alone.

        A part is some 16 MB: small sources together, and of a large file of JSON
        Lines or Parquet what begins in a stretch of its bytes. Other large files, such
        as compressed ones, are one part each.

        Args:
            item: The `item` of the first part.
            start: The `start` of the first part.
        """
        first, sources, total = item, [], 0
        for index, source in enumerate(islice(self._items, item, None), item):
            size = _size(source)
            if size is not None and size <= PART_BYTES and not start:
                sources.append(source)
                total += size
                if total < PART_BYTES:
                    continue
            if sources:
                yield Part(first, 0, sources, None)
            if not sources or sources[-1] is not source:
                is_cut = size and not isinstance(source, str) and can_be_cut(source)
                step = PART_BYTES if is_cut else None
                for begin in range(start, size or 1, step or size or 1):
                    yield Part(index, begin, [source], step and begin + step)
            first, sources, total, start = index + 1, [], 0, 0
        if sources:
            yield Part(first, 0, sources, None)

    def read(self, part: Part) -> Iterator[Piece]:
        """Yield the documents of a part in order, long ones in pieces."""
        for source in part.sources:
            if isinstance(source, str):
                yield from _document_pieces(_without_surrogates(source), len(source))
            elif _is_text_file(source):
                yield from _split(_decode(source, self._encoding))
            else:
                yield from self._read_records(source, part.start, part.stop)

    def without_sources(self) -> "Corpus":
        """The same corpus without its sources, light to send: for its `read`."""
        return Corpus([], text_field=self._text_field, encoding=self._encoding)

    @property
    def _is_list(self) -> bool:
        return isinstance(self._items, list)

    def _read_records(self, path, start, stop):
        field = self._text_field
        records = iterate_records(path, self._encoding, field, start, stop)
        for place, record, num_bytes in records:
            text = record.get(field)
            if path.suffix == ".parquet" and not isinstance(text, str):
                continue  # there is nothing in this row
            if not isinstance(text, str):
                raise ValueError(
                    f"{path}, {place} must have a text in the field {field!r}. "
                    f"Received: the fields {list(record)}. Correct the line or pass "
                    "the name of the field as `text_field`."
                )
            yield from _document_pieces(_without_surrogates(text), num_bytes)


def read_documents(
    source: str | Path | Iterable[str | Path],
    *,
    text_field: str = "text",
    encoding: str = "utf-8",
) -> Iterator[str]:
    """Yield whole documents from files, folders or the embedded corpus.

    Args:
        source: As for `keras_gpt.data.Corpus`, whose `pieces` keep memory flat where
            a single document is large.
        text_field: The field that holds the text in JSON Lines and Parquet.
        encoding: The encoding of text and JSON Lines files.

    Yields:
        Documents, none of them empty.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: There is no text at all, or a file cannot be read as text.

    Example:

    >>> list(read_documents(["To be", "", "or not to be"]))
    ['To be', 'or not to be']
    """
    parts: list[str] = []
    is_empty = True
    corpus = Corpus(source, text_field=text_field, encoding=encoding)
    for piece in corpus.pieces():
        is_empty = False
        parts.append(piece.text)
        if piece.ends_document:
            yield "".join(parts)
            parts.clear()
    if is_empty:
        raise ValueError("The corpus is empty: `source` holds no text.")


def _check_encoding(encoding: str) -> str:
    try:
        " ".encode(encoding)
    except (LookupError, ValueError) as error:
        raise ValueError(
            "`encoding` must be one for text that Python knows, such as 'utf-8' or "
            f"'latin-1'. Received: encoding={encoding!r}."
        ) from error
    # A byte order mark is dropped; files without one read the same.
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _is_text_file(file: Path | RemoteFile) -> bool:
    return not file.name.endswith(JSON_SUFFIXES) and file.suffix != ".parquet"


def _size(item: Any) -> int | None:
    """Characters of a document, bytes of a file."""
    _check_source(item)
    return len(item) if isinstance(item, str) else file_size(item)


def _check_source(item: Any) -> None:
    if not isinstance(item, str | Path | RemoteFile):
        raise ValueError(
            "`source` must yield documents as `str`. "
            f"Received: an item of type {type(item).__name__}."
        )


def _expand(path: str | Path) -> list[Any]:
    """Turn a path into the files that it stands for."""
    if path == EMBEDDED:
        return list(embedded_corpus())
    if isinstance(path, str) and ("\n" in path or len(path) > 4000):
        raise ValueError(
            "`source` must be a path. Received: what looks like a text, "
            f"{path[:40]!r}... Pass a list, [text], to use the text itself."
        )
    return find_files(path)


def _check_items(items: Iterable[Any]) -> None:
    for item in items:
        if not isinstance(item, str | Path):
            raise ValueError(
                "`source` must hold texts (`str`) or `pathlib.Path`s. "
                f"Received: an item of type {type(item).__name__}."
            )
    first = next(iter(items), None)
    is_short = isinstance(first, str) and len(first) < 250 and "\n" not in first
    if is_short and "\0" not in first and Path(first).is_file():
        raise ValueError(
            f"In a list a `str` is a document, but {first!r} names a file. "
            "Wrap paths: [pathlib.Path(name), ...]."
        )


def _decode(path: Path | RemoteFile, encoding: str) -> Iterator[tuple[str, int]]:
    """Yield the text of a file in blocks, each with its size in the file."""
    decoder = codecs.getincrementaldecoder(encoding)()
    num_read, position = 0, 0
    with open_source(path) as (raw, file):
        while True:
            block = file.read(_BLOCK_BYTES)
            num_read += len(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                _refuse_binary(path, block)
                offset = num_read - len(error.object) + error.start
                raise ValueError(
                    f"{path} is not {encoding.removesuffix('-sig')}: {error.reason} "
                    f"at byte {offset}. Pass the encoding that it was written in, "
                    "for example `encoding='latin-1'`."
                ) from error
            if "\0" in text:
                _refuse_binary(path, b"\0")
            yield text, raw.tell() - position
            position = raw.tell()
            if not block:
                return


def _refuse_binary(path: Path | RemoteFile, block: bytes) -> None:
    if b"\0" in block:
        raise ValueError(
            f"{path} is a binary file (it holds NUL bytes), not text. Remove it from "
            "`source`, or pass `encoding='utf-16'` if it is UTF-16."
        )


def _document_pieces(document: str, num_source_bytes: int) -> Iterator[Piece]:
    starts = range(0, len(document), _BLOCK_BYTES)
    return _split(
        (document[start : start + _BLOCK_BYTES], 0 if start else num_source_bytes)
        for start in starts
    )


def _split(blocks: Iterable[tuple[str, int]]) -> Iterator[Piece]:
    """Cut one document, which comes in blocks, into pieces."""
    rest, num_source_bytes = "", 0
    for block, block_bytes in blocks:
        rest += block
        num_source_bytes += block_bytes
        while len(rest) > PIECE_CHARACTERS:
            cut = safe_cut(rest, 0, PIECE_CHARACTERS) or PIECE_CHARACTERS
            yield Piece(rest[:cut], False, num_source_bytes)
            rest, num_source_bytes = rest[cut:], 0
    if rest:
        yield Piece(rest, True, num_source_bytes)


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON allows and no UTF-8 text can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
