"""Files that are written whole or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` and rename it to `path` at the end.

    The temporary name keeps the ending, because Keras chooses a format by it.
    When the block raises (a full disk, Ctrl-C), the temporary file or folder is
    removed and what was at `path` before stays as it was.

    Args:
        path: Where the file or folder shall be; an existing file is replaced,
            an existing folder is refused.

    Yields:
        The path to write to.

    Raises:
        FileExistsError: `path` is an existing folder.
    """
    path = Path(path)
    if path.is_dir():
        raise FileExistsError(
            f"{path} is an existing folder. Remove it or choose another name."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise OSError(
                error.errno,
                f"{path} can't be written: {error.strerror}. Make room and try again; "
                "what was there before is unchanged.",
            ) from error
        raise


@contextmanager
def atomic_update(directory: str | Path) -> Iterator[Path]:
    """Give a temporary folder and move its files into `directory` at the end.

    The files there belong together: when the block raises, none has changed.

    Args:
        directory: Made if there is none; its other files stay.

    Yields:
        The folder to write to.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{os.getpid()}.partial"
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                target = directory / path.relative_to(temporary)
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: str | Path) -> Any:
    """Read JSON, naming the file when it is not JSON.

    Raises:
        ValueError: The file is not valid JSON.
        FileNotFoundError: There is no such file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the latter: nested too deep
        raise ValueError(
            f"{path} is not valid JSON ({error}). It may be truncated: write it again."
        ) from error
