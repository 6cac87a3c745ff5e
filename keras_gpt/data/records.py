"""Records, such as examples and documents: lines of JSON Lines, rows of Parquet."""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from keras_gpt.data.sources import JSON_SUFFIXES, find_files, is_remote
from keras_gpt.installed import require


def read_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read records, one a line of JSON Lines or a row of Parquet.

    Args:
        path: A `.jsonl`, `.jsonl.gz` or `.parquet` file, or such files of a storage
            that fsspec reads (`"s3://bucket/*.jsonl"`).

    Yields:
        Where the record stands, such as `"train.jsonl, line 3"`, for errors about it,
        and the record.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is of another kind, or damaged, a line isn't a JSON object, or
            there is no record at all.
    """
    if not is_remote(path) and not Path(path).is_file():
        raise FileNotFoundError(
            f"There are no examples at {path}. Give a .jsonl or .parquet file."
        )
    if not str(path).endswith((*JSON_SUFFIXES, ".parquet")):
        raise ValueError(
            f"Examples are read from .jsonl, .jsonl.gz and .parquet. Received: {path}."
        )
    is_empty = True
    for file in find_files(path):
        for place, record, _ in iterate_records(file):
            is_empty = False
            yield f"{file.name}, {place}", record
    if is_empty:
        raise ValueError(f"{path} has no records. Write one a line.")


def iterate_records(
    path: Any,
    encoding: str = "utf-8-sig",
    field: str | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Read records, each with its place and the bytes of the file that it took.

    Args:
        path: A file as for `read_records`, a `pathlib.Path` or a `RemoteFile`.
        encoding: Of JSON Lines.
        field: The only column of Parquet to read. Defaults to `None`, all.
        start: Only lines, or groups of rows, that begin at this byte or later; 0 for
            compressed files.
        stop: Only those that begin before this byte. Defaults to `None`, all.
    """
    if path.suffix == ".parquet":
        return _read_rows(path, field, start, stop)
    return _read_lines(path, encoding, start, stop)


def _read_lines(path, encoding, start, stop):
    with open_source(path) as (raw, file):
        if start:  # a line that begins before it is another reader's
            file.seek(start - 1)
            file.readline()
        position = read = raw.tell()
        number, beginning = 0, f" after byte {position}" if start else ""
        while (stop is None or position < stop) and (line := file.readline()):
            position = raw.tell()
            number += 1
            place = f"line {number}{beginning}"
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
            yield place, record, position - read
            read = position


def _read_rows(path, field, start, stop):
    require("parquet", str(path), "pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        # a local file by its path: the library then reads it itself
        opened = nullcontext(path) if isinstance(path, Path) else path.open("rb")
        with opened as source, parquet.ParquetFile(source) as file:
            columns = file.schema_arrow.names
            if field is not None and field not in columns:
                raise ValueError(
                    f"{path} has no column {field!r}. Pass one of its columns as "
                    f"`text_field`: {', '.join(columns)}."
                )
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            number = 0
            for index, group in enumerate(groups):
                first = group.column(0).data_page_offset
                if first < start or (stop is not None and first >= stop):
                    number += group.num_rows
                    continue
                num_bytes = sum(
                    group.column(i).total_compressed_size
                    for i in range(group.num_columns)
                )
                for batch in file.iter_batches(256, [index], field and [field]):
                    for record in batch.to_pylist():
                        number += 1
                        yield f"row {number}", record, num_bytes // group.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file ({error}).") from error


@contextmanager
def open_source(path: Any) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file that may be compressed; give it as it is, and what is in it."""
    with path.open("rb") as raw:
        try:
            yield raw, gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path} is damaged or cut off ({error}). Fetch it again."
            ) from error
