"""Records, such as examples and documents: lines of JSON Lines, rows of Parquet."""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

JSON_SUFFIXES = (".jsonl", ".jsonl.gz")


def read_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read records, one a line of JSON Lines or a row of Parquet.

    Args:
        path: A `.jsonl`, `.jsonl.gz` or `.parquet` file.

    Yields:
        Where the record stands, such as `"train.jsonl, line 3"`, for errors about it,
        and the record.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is of another kind, or damaged, a line isn't a JSON object, or
            there is no record at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no examples at {path}. Give a .jsonl or .parquet file."
        )
    if not path.name.endswith((*JSON_SUFFIXES, ".parquet")):
        raise ValueError(
            f"Examples are read from .jsonl, .jsonl.gz and .parquet. Received: {path}."
        )
    is_empty = True
    for place, record, _ in iterate_records(path):
        is_empty = False
        yield f"{path.name}, {place}", record
    if is_empty:
        raise ValueError(f"{path} has no records. Write one a line.")


def iterate_records(
    path: Path, encoding: str = "utf-8-sig", field: str | None = None
) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Read records, each with its place and the bytes of the file that it took.

    Args:
        path: As for `read_records`.
        encoding: Of JSON Lines.
        field: The only column of Parquet to read. Defaults to `None`, all.
    """
    if path.suffix == ".parquet":
        return _read_rows(path, field)
    return _read_lines(path, encoding)


def _read_lines(path, encoding):
    position = 0
    with open_source(path) as (raw, file):
        for number, line in enumerate(file, 1):
            place = f"line {number}"
            try:
                text = line.decode(encoding).strip()
                record = json.loads(text) if text else None
            except (ValueError, RecursionError) as error:  # the latter: nested too deep
                raise ValueError(
                    f"{path}, {place} is not valid JSON: {error}."
                ) from error
            if not text:
                continue
            if not isinstance(record, dict):
                raise ValueError(
                    f'{path}, {place} must be an object such as {{"prompt": ..., '
                    f'"completion": ...}}. Received: {text[:60]}.'
                )
            yield place, record, raw.tell() - position
            position = raw.tell()


def _read_rows(path, field):
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field is not None and field not in columns:
                raise ValueError(
                    f"{path} has no column {field!r}. Pass one of its columns as "
                    f"`text_field`: {', '.join(columns)}."
                )
            num_row_bytes = path.stat().st_size // max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(256, columns=field and [field]):
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record, num_row_bytes
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file ({error}).") from error


@contextmanager
def open_source(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file that may be compressed; give it as it is, and what is in it."""
    with path.open("rb") as raw:
        try:
            yield raw, gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path} is damaged or cut off ({error}). Fetch it again."
            ) from error
