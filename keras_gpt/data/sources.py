"""Which files a name stands for: local ones, and those that fsspec reads."""

import glob
import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

JSON_SUFFIXES = (".jsonl", ".jsonl.gz")
_TEXT_SUFFIXES = (".txt", ".md", ".txt.gz")
# Neither one text nor many: reading them as text would train on their syntax.
_REFUSED_SUFFIXES = (".json", ".csv", ".tsv", ".html", ".pdf", ".docx", ".gz", ".zip")
_SUFFIXES = (*_TEXT_SUFFIXES, *JSON_SUFFIXES, ".parquet")
_REMOTE_NAME = re.compile(r"[\w+.:-]+://")  # s3://..., simplecache::s3://...


@dataclass(frozen=True)
class RemoteFile:
    """A file of an fsspec filesystem, used as if it were a `pathlib.Path`.

    Args:
        filesystem: The filesystem.
        path: As the filesystem writes it.
        num_bytes: Its size; `None` where only reading it would tell.
        version: Changes when the file does.
    """

    filesystem: Any
    path: str
    num_bytes: int | None
    version: str

    def __str__(self):
        return self.filesystem.unstrip_protocol(self.path)

    @property
    def name(self) -> str:
        """The last part of the path, without what a URL asks for."""
        return self.path.rpartition("/")[2].partition("?")[0]

    @property
    def suffix(self) -> str:
        """The ending of the name."""
        return PurePosixPath(self.name).suffix

    @property
    def is_stream(self) -> bool:
        """Whether it is to be read from its beginning on, as many web servers want."""
        return "http" in self.filesystem.protocol and self.suffix != ".parquet"

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Open it as a stream, of which lines are read fast."""
        options = {"block_size": 0} if self.is_stream else {}
        file = self.filesystem.open(self.path, mode, **options)
        return io.BufferedReader(file, 2**20)


def is_remote(name: str | Path) -> bool:
    """Whether it is a name that fsspec reads."""
    return isinstance(name, str) and bool(_REMOTE_NAME.match(name))


def find_files(name: str | Path) -> list[Path | RemoteFile]:
    """Find the files that a path, a folder, a pattern or an fsspec name stands for.

    Raises:
        FileNotFoundError: There is none.
        ImportError: A package is missing that reads such names.
        ValueError: A folder without documents, or a file that isn't one.
    """
    if is_remote(name):
        files, is_folder = _find_remote(name)
    else:
        files, is_folder = _find_local(name)
    if not files and is_folder:
        raise ValueError(
            f"The folder {str(name)!r} holds no documents. "
            f"Files that are read end with {', '.join(_SUFFIXES)}."
        )
    if not files:
        raise FileNotFoundError(
            f"There is no file or folder {str(name)!r}. Pass an existing path, "
            "'embedded' for the corpus that comes with Python, or a list of texts."
        )
    for file in files:
        if file.suffix in _REFUSED_SUFFIXES and not file.name.endswith(_SUFFIXES):
            raise ValueError(
                f"{file} has an unsupported suffix, {file.suffix!r}. "
                f"Convert it to one of {', '.join(_SUFFIXES)}."
            )
    return files


def can_be_cut(file: Path | RemoteFile) -> bool:
    """Whether the documents in a file can be read from any place on."""
    is_stream = isinstance(file, RemoteFile) and file.is_stream
    return file.suffix in (".jsonl", ".parquet") and not is_stream


def file_size(file: Path | RemoteFile) -> int | None:
    """Size of a file; `None` where only reading it would tell."""
    return file.num_bytes if isinstance(file, RemoteFile) else file.stat().st_size


def describe(file: Path | RemoteFile) -> dict[str, Any]:
    """Say which file it is, in which version, as JSON can hold it."""
    if isinstance(file, RemoteFile):
        about = {"path": str(file), "num_bytes": file.num_bytes}
        return {**about, "version": file.version}
    status = file.stat()
    about = {"path": str(file.resolve()), "num_bytes": status.st_size}
    return {**about, "modified_ns": status.st_mtime_ns}


def _find_local(name):
    path = Path(name)
    if path.is_file():
        return [path], False
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in path.rglob("*")]
        files = [path / name for name in _documents(names)]
        return [file for file in files if file.is_file()], True
    paths = map(Path, glob.glob(str(name), recursive=True))  # noqa: PTH207 - absolute
    return sorted(path for path in paths if path.is_file()), False


def _find_remote(url):
    from fsspec.core import has_magic, url_to_fs

    try:
        filesystem, path = url_to_fs(url)
    except ImportError as error:
        raise ImportError(f"{url} needs another package: {error}.") from error
    except ValueError as error:
        raise ValueError(
            f"{url} can't be read: {error}. Give a name that fsspec knows, such as "
            "s3://bucket/folder, or a path of this machine."
        ) from error
    is_folder = False
    if has_magic(path):
        found = filesystem.glob(path, detail=True)
        names = sorted(found, key=_parts)
    elif filesystem.isdir(path):
        is_folder = True
        found = filesystem.find(path, detail=True)
        start = path.rstrip("/") + "/"
        by_name = {name.removeprefix(start): name for name in found}
        names = [by_name[name] for name in _documents(by_name)]
    else:
        found = {path: filesystem.info(path)} if filesystem.exists(path) else {}
        names = list(found)
    return [
        _remote_file(filesystem, name, found[name])
        for name in names
        if found[name]["type"] == "file"
    ], is_folder


def _remote_file(filesystem, path, info):
    # of all that is known, such as ETag, since each filesystem names it otherwise
    known = repr(sorted((key, str(value)) for key, value in info.items()))
    version = hashlib.sha256(known.encode("utf-8")).hexdigest()
    return RemoteFile(filesystem, path, info.get("size"), version)


def _documents(names: Iterable[str]) -> list[str]:
    """Names in a folder that are documents' and not hidden, sorted."""
    shown = (n for n in names if not any(p.startswith(".") for p in _parts(n)))
    return sorted((n for n in shown if n.endswith(_SUFFIXES)), key=_parts)


def _parts(name):
    return name.split("/")
