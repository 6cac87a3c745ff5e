"""Documents from text files, JSON Lines, Parquet, folders or Python strings."""

import codecs
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from keras_gpt.data.embedded import embedded_corpus
from keras_gpt.data.records import JSON_SUFFIXES, iterate_records, open_source
from keras_gpt.tokenizers.rules import safe_cut

EMBEDDED = "embedded"
# SentencePiece is some 20% faster on pieces of this size than on a megabyte.
PIECE_CHARACTERS = 100_000
_BLOCK_BYTES = 1_000_000
_TEXT_SUFFIXES = (".txt", ".md", ".txt.gz")
# Neither one text nor many: reading them as text would train on their syntax.
_REFUSED_SUFFIXES = (".json", ".csv", ".tsv", ".html", ".pdf", ".docx", ".gz", ".zip")
_SUFFIXES = (*_TEXT_SUFFIXES, *JSON_SUFFIXES, ".parquet")


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


class Corpus:
    """Documents of one source or several, read as a stream in flat memory.

    Args:
        source: `"embedded"` (`keras_gpt.data.embedded_corpus`); the path of a text
            file (`.txt`, `.md`, `.txt.gz`, no suffix: one document), of JSON Lines
            (`.jsonl`, `.jsonl.gz`), of a Parquet file, or of a folder (all such
            files in it, sorted); an iterable of documents; or a list that mixes
            `pathlib.Path`s and documents. In an iterable a `str` is always a
            document.
        text_field: The field of JSON Lines and the column of Parquet files that
            hold the text.
        encoding: The encoding of text and JSON Lines files.

    Raises:
        FileNotFoundError: A path does not exist.
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
        sizes = (
            len(i) if isinstance(i, str) else i.stat().st_size for i in self._items
        )
        return sum(sizes)

    @property
    def num_documents(self) -> int | None:
        """How many documents there are, or None where only reading would tell."""
        if not self._is_list:
            return None
        if any(isinstance(i, Path) and not _is_text_file(i) for i in self._items):
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
            if isinstance(item, Path):
                status = item.stat()
                size, modified = status.st_size, status.st_mtime_ns
                file = {"path": str(item.resolve()), "num_bytes": size}
                described.append({**file, "modified_ns": modified})
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
            if isinstance(item, Path):
                yield from self._read_file(item)
            elif isinstance(item, str):
                yield from _document_pieces(_without_surrogates(item), len(item))
            else:
                raise ValueError(
                    "`source` must yield documents as `str`. "
                    f"Received: an item of type {type(item).__name__}."
                )

    @property
    def _is_list(self) -> bool:
        return isinstance(self._items, list)

    def _read_file(self, path: Path) -> Iterator[Piece]:
        if _is_text_file(path):
            return _split(_decode(path, self._encoding))
        return _read_records(path, self._text_field, self._encoding)


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


def _is_text_file(path: Path) -> bool:
    return not path.name.endswith(JSON_SUFFIXES) and path.suffix != ".parquet"


def _expand(path: str | Path) -> list[Any]:
    """Turn a path into the files that it stands for."""
    if path == EMBEDDED:
        return list(embedded_corpus())
    if isinstance(path, str) and ("\n" in path or len(path) > 4000):
        raise ValueError(
            "`source` must be a path. Received: what looks like a text, "
            f"{path[:40]!r}... Pass a list, [text], to use the text itself."
        )
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no file or folder {str(path)!r}. Pass an existing path, "
            "'embedded' for the corpus that comes with Python, or a list of texts."
        )
    if path.is_file():
        if path.suffix in _REFUSED_SUFFIXES and not path.name.endswith(_SUFFIXES):
            raise ValueError(
                f"{path} has an unsupported suffix, {path.suffix!r}. "
                f"Convert it to one of {', '.join(_SUFFIXES)}."
            )
        return [path]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.name.endswith(_SUFFIXES)
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise ValueError(
            f"The folder {str(path)!r} holds no documents. "
            f"Files that are read end with {', '.join(_SUFFIXES)}."
        )
    return files


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


def _decode(path: Path, encoding: str) -> Iterator[tuple[str, int]]:
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


def _refuse_binary(path: Path, block: bytes) -> None:
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


def _read_records(path: Path, text_field: str, encoding: str) -> Iterator[Piece]:
    for place, record, num_bytes in iterate_records(path, encoding, text_field):
        text = record.get(text_field)
        if path.suffix == ".parquet" and not isinstance(text, str):
            continue  # there is nothing in this row
        if not isinstance(text, str):
            raise ValueError(
                f"{path}, {place} must have a text in the field {text_field!r}. "
                f"Received: the fields {list(record)}. Correct the line or pass the "
                "name of the field as `text_field`."
            )
        yield from _document_pieces(_without_surrogates(text), num_bytes)
