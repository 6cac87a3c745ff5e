"""Files that are written whole or not at all."""

import errno
import json
import os
import re
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
    _make_folder(path.parent)
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
        _name_what_is_full(error, path)
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
    _make_folder(directory)
    temporary = directory / f".{os.getpid()}.partial"
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                target = directory / path.relative_to(temporary)
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
    except OSError as error:
        _name_what_is_full(error, directory)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"{path} can't be a folder: it is a file, or in one. Choose another name."
        ) from error


def _name_what_is_full(error, path):
    """Raise an `OSError` with the path, which that of a full disk lacks."""
    if isinstance(error, OSError) and error.errno in (None, *_NO_ROOM):
        # NumPy's has no number
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(
            error.errno or errno.ENOSPC,
            f"{path} can't be written: {reason}. Make room and try again; what was "
            "there before is unchanged.",
        ) from error


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def write_safetensors(
    path: str | Path, arrays: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write arrays in the safetensors format.

    Raises:
        OSError: The disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(arrays, path, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(number and int(number[1]), f"{path}: {error}") from error


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
