"""Files that are written whole or not at all, and folders with one writer at a time."""

import errno
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

LOCK_NAME = ".lock"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A number of a process was once in the name, which each container uses anew
_LEFTOVER = re.compile(r"\.[0-9a-f]+\.partial(\..+)?")
_DAY = 24 * 3600


@contextmanager
def atomic_path(path: str | Path, previous: str | Path | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path` and rename it to `path` at the end.

    The temporary name keeps the ending, because Keras chooses a format by it.
    When the block raises (a full disk, Ctrl-C), the temporary file or folder is
    removed and what was at `path` before stays as it was.

    Args:
        path: Where the file or folder shall be; an existing file is replaced,
            an existing folder is refused.
        previous: Where what was at `path` is kept. Defaults to `None`: nowhere.

    Yields:
        The path to write to.

    Raises:
        FileExistsError: `path` is an existing folder.
        OSError: It can't be written, such as on a full disk; `path` is named.
    """
    path = Path(path)
    if path.is_dir():
        raise FileExistsError(f"{path} is an existing folder. Choose another name.")
    with _temporary(path.parent, f".{path.name}", path) as temporary:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if previous is not None and path.is_file():
            path.replace(previous)
        temporary.replace(path)


@contextmanager
def atomic_update(directory: str | Path) -> Iterator[Path]:
    """Give a temporary folder and move its files into `directory` at the end.

    The files there belong together: when the block raises, none has changed.

    Args:
        directory: Made if there is none; its other files stay.

    Yields:
        The folder to write to.

    Raises:
        OSError: It can't be written, such as on a full disk; `directory` is named.
    """
    directory = Path(directory)
    with _temporary(directory, "", directory) as temporary:
        temporary.mkdir()
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                target = directory / path.relative_to(temporary)
                target.parent.mkdir(exist_ok=True)
                path.replace(target)


@contextmanager
def _temporary(folder, ending, target):
    """Give a name that no other writer has, and remove what is left there at last."""
    temporary = folder / f".{uuid4().hex[:12]}.partial{ending}"
    try:
        _make_folder(folder)
        remove_leftovers(folder, older_than=_DAY)
        yield temporary
    except OSError as error:
        # NumPy's and HDF5's have no number
        number = error.errno or (type(error) is OSError and errno.ENOSPC)
        if number in _NO_ROOM:
            # not what a file in a folder said, whose name goes
            reason = os.strerror(number) if error.errno else error
            way_out = "Make room and try again; what was there before is unchanged."
        elif temporary.name in str(error.filename):
            reason = error.strerror
            way_out = f"Look at {folder}, or choose another place."
        else:
            raise
        message = f"{target} can't be written: {reason}. {way_out}"
        raise OSError(number, message) from error
    finally:
        _remove(temporary)


def _make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"{path} can't be a folder: it is a file, or in one. Choose another name."
        ) from error


def remove_leftovers(directory: str | Path, older_than: float = 0.0) -> None:
    """Remove what writers that were killed left right in a folder.

    Args:
        directory: The folder; those in it are not searched.
        older_than: Seconds since anything was written to what is removed. Defaults
            to 0, for those who know that nobody else writes there.
    """
    for path in Path(directory).iterdir():
        if _LEFTOVER.fullmatch(path.name):
            with suppress(FileNotFoundError):  # its writer is alive, and done
                written = max(p.stat().st_mtime for p in [path, *path.rglob("*")])
                if time.time() - written >= older_than:
                    _remove(path)


def _remove(path):
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # there is none, or it was a folder
        path.unlink()


@contextmanager
def locked(directory: str | Path) -> Iterator[None]:
    """Let no other process write into a folder for as long as the block lasts.

    The system frees the lock when a process ends, however it ends. What killed
    writers left right in the folder is removed.

    Args:
        directory: The folder, made if there is none. An empty file `.lock` stays.

    Raises:
        BlockingIOError: Another process, or another block in this one, has it.
    """
    from filelock import FileLock, Timeout

    directory = Path(directory)
    _make_folder(directory)
    try:
        lock = FileLock(directory / LOCK_NAME, blocking=False).acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"{directory} is being written by another process. Wait until it ends, "
            "or choose another folder."
        ) from error
    with lock:
        remove_leftovers(directory)
        yield


def is_locked(directory: str | Path) -> bool:
    """Whether a process, or a block in this one, has the lock of `locked`."""
    from filelock import FileLock, Timeout

    path = Path(directory, LOCK_NAME)
    if not path.is_file():
        return False
    try:
        with FileLock(path, blocking=False):
            return False
    except Timeout:
        return True


def checksum(path: str | Path, num_bytes: int | None = None) -> str:
    """CRC-32 of a file in 8 hexadecimal digits: it tells damage, not malice.

    Read in parts, at several GB a second; one flipped byte always changes it.

    Args:
        path: The file.
        num_bytes: How much of it, from its start. Defaults to `None`, all.
    """
    value = 0
    left = Path(path).stat().st_size if num_bytes is None else num_bytes
    with Path(path).open("rb") as file:
        while part := file.read(min(left, 2**20)):
            value = zlib.crc32(part, value)
            left -= len(part)
    return f"{value:08x}"


def matches(value: Any, shape: Any) -> bool:
    """Whether what was read from JSON has a shape.

    Args:
        value: What was read.
        shape: A type; a list with the shape of each item; or a dictionary with the
            shapes of fields, besides which there may be others.

    Example:

    >>> matches({"a": 1, "b": ["x"], "c": None}, {"a": int, "b": [str]})
    True
    >>> matches(None, {"a": int})
    False
    """
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            matches(value.get(name), kind) for name, kind in shape.items()
        )
    if isinstance(shape, list):
        return isinstance(value, list) and all(matches(v, shape[0]) for v in value)
    return isinstance(value, shape)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
