"""Token files: written in shards, read through memory maps.

A prepared directory holds, for each split, `<split>-00000.bin`, ... (token ids),
`<split>-documents.bin` (int64: where each document ends), and one `metadata.json`,
which is written last: a directory without it is unfinished.
"""

import hashlib
import os
import threading
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np

from keras_gpt.data.tokenizing import Tokens
from keras_gpt.files import matches, read_json

METADATA_NAME = "metadata.json"
PROGRESS_NAME = "progress.json"
COUNTS = ("num_tokens", "num_documents", "num_characters", "num_bytes", "num_pieces")
_FILE = {"file": str, "sha256": str}
_SHARDS = [{**_FILE, "num_tokens": int}]
_SPLIT = {**dict.fromkeys(COUNTS[:-1], int), "shards": _SHARDS, "documents": _FILE}
_METADATA = {
    "dtype": str,
    "vocab_size": int,
    "end_of_text_id": int | None,
    "tokenizer": str,
    "splits": dict,
}
# What `SplitWriter.save` gives
STATE = {"counts": dict.fromkeys(COUNTS, int), "shards": _SHARDS}
_END_DTYPE = np.dtype("<i8")
# What `verify_meanwhile` reads before anything is used, in half a second
_BYTES_AT_ONCE = 2**30


class SplitWriter:
    """Write the token files of one split, and go on from a saved state.

    Args:
        directory: The prepared directory.
        split: Name of the split.
        dtype: Integer type of the token ids.
        shard_size: Tokens in each shard but the last.
        state: What `save` gave, to go on from there; what was written after it is
            cut off.

    Raises:
        ValueError: The files are shorter than `state` says.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        dtype: np.dtype,
        shard_size: int,
        state: dict[str, Any] | None = None,
    ):
        self._directory = directory
        self._split = split
        self._dtype = dtype
        self._shard_size = shard_size
        state = state or {"counts": dict.fromkeys(COUNTS, 0), "shards": []}
        self.counts: dict[str, int] = state["counts"]
        self._shards: list[dict[str, Any]] = state["shards"]
        num_ends = self.counts["num_documents"]
        self._ends = self._open(f"{split}-documents.bin", num_ends * 8)
        self._shard = self._open_shard()

    def append(self, tokens: Tokens) -> None:
        """Append the tokens of a task."""
        token_ids = tokens.token_ids
        ends = tokens.document_ends.astype(_END_DTYPE) + self.counts["num_tokens"]
        self._ends.write(ends.tobytes())
        while len(token_ids):
            room = self._shard_size - self._num_in_shard
            written, token_ids = token_ids[:room], token_ids[room:]
            self._shard.write(written.tobytes())
            self.counts["num_tokens"] += len(written)
            if len(written) == room:
                self._finish_shard()
                self._shard = self._open_shard()
        for name, count in tokens.counts.items():
            self.counts[name] += count

    def save(self) -> dict[str, Any]:
        """Force what was written to the disk and give the state to go on from."""
        for file in (self._shard, self._ends):
            file.flush()
            os.fsync(file.fileno())
        return {"counts": self.counts, "shards": self._shards}

    def finish(self) -> dict[str, Any]:
        """Finish the files and give the split's part of the metadata."""
        self.save()
        if self._num_in_shard:
            self._finish_shard()
        else:
            Path(self._shard.name).unlink()
        self.close()
        ends = Path(self._ends.name)
        counts = {key: n for key, n in self.counts.items() if key != "num_pieces"}
        documents = {"file": ends.name, "sha256": _sha256(ends)}
        return {**counts, "shards": self._shards, "documents": documents}

    def close(self) -> None:
        """Close the files as they are."""
        self._shard.close()
        self._ends.close()

    @property
    def _num_in_shard(self) -> int:
        return self.counts["num_tokens"] - len(self._shards) * self._shard_size

    def _open_shard(self) -> IO[bytes]:
        name = f"{self._split}-{len(self._shards):05d}.bin"
        return self._open(name, self._num_in_shard * self._dtype.itemsize)

    def _open(self, name: str, num_bytes: int) -> IO[bytes]:
        path = self._directory / name
        path.touch()
        if path.stat().st_size < num_bytes:
            raise ValueError(f"{path} is shorter than it was. {_PREPARE_AGAIN}")
        os.truncate(path, num_bytes)
        return path.open("ab")

    def _finish_shard(self) -> None:
        self._shard.close()
        path = Path(self._shard.name)
        counts = {"num_tokens": self._num_in_shard}
        self._shards.append({"file": path.name, **counts, "sha256": _sha256(path)})


class TokenDataset:
    """The tokens of one split, memory-mapped: shards look like one long array.

    Args:
        directory: A directory that `keras_gpt.data.prepare` wrote.
        split: `"train"` or `"val"`.
        verify: Whether to read all files and compare their checksums, too.

    Raises:
        FileNotFoundError: The directory is not prepared, or a file is missing.
        ValueError: There is no such split, or a file is damaged.

    Example:

    ```python
    tokens = keras_gpt.data.TokenDataset("data/docs", "val")
    len(tokens)          # How many tokens.
    tokens[1000:1064]    # An array of ids, across shards.
    tokens.document_ends # Where each document ends.
    ```
    """

    def __init__(self, directory: str | Path, split: str, *, verify: bool = False):
        self._directory = Path(directory)
        self._split = split
        self.metadata = read_metadata(directory)
        splits = self.metadata["splits"]
        if split not in splits:
            raise ValueError(
                f"`split` must be one of those in {directory}: {', '.join(splits)}. "
                f"Received: split={split!r}."
            )
        self.dtype = np.dtype(self.metadata["dtype"])
        description = splits[split]
        lengths = [shard["num_tokens"] for shard in description["shards"]]
        self._starts = [0, *accumulate(lengths)]
        self._shards = [
            self._map(shard, self.dtype, length)
            for shard, length in zip(description["shards"], lengths, strict=True)
        ]
        self.document_ends = self._map(
            description["documents"], _END_DTYPE, description["num_documents"]
        )
        self._files = [*description["shards"], description["documents"]]
        self._damage: Exception | None = None
        if verify:
            self._compare_checksums(self._files)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, window: slice) -> np.ndarray:
        """Give the ids of a slice with step 1, in the type of the files."""
        if self._damage is not None:
            raise self._damage
        start, stop, _ = window.indices(len(self))
        index = bisect_right(self._starts, start) - 1
        parts = []
        while start < stop:
            offset = self._starts[index]
            parts.append(self._shards[index][start - offset : stop - offset])
            start += len(parts[-1])
            index += 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.empty(0, self.dtype), *parts])

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Read windows of equal length.

        Args:
            starts: Where each window starts.
            length: How many ids each has.

        Returns:
            int32 array of shape `(len(starts), length)`.
        """
        windows = np.empty((len(starts), length), np.int32)
        for row, start in enumerate(starts.tolist()):
            windows[row] = self[start : start + length]
        return windows

    def verify_meanwhile(self) -> None:
        """Compare the checksums of the first GB now, and of the rest in a thread.

        What the thread finds is raised by the next read: a corpus of any size can be
        used at once, and none is used for long that is damaged.

        Raises:
            ValueError: A file in the first GB is damaged.
        """
        ends = accumulate(self._path(file).stat().st_size for file in self._files)
        num_now = sum(end <= _BYTES_AT_ONCE for end in ends)
        self._compare_checksums(self._files[:num_now])
        if later := self._files[num_now:]:

            def compare():
                try:
                    self._compare_checksums(later)
                except (OSError, ValueError) as error:
                    self._damage = error

            threading.Thread(target=compare, daemon=True).start()

    def __reduce__(self) -> tuple[Any, ...]:
        # Without it, pickling would copy the tokens themselves.
        return TokenDataset, (self._directory, self._split)

    def _path(self, file: dict[str, Any]) -> Path:
        return self._directory / file["file"]

    def _compare_checksums(self, files: list[dict[str, Any]]) -> None:
        for file in files:
            path = self._path(file)
            if _sha256(path) != file["sha256"]:
                raise ValueError(f"{path} has another checksum. {_PREPARE_AGAIN}")

    def _map(self, file: dict[str, Any], dtype: np.dtype, length: int) -> np.ndarray:
        path = self._path(file)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing. {_PREPARE_AGAIN}")
        num_bytes = length * dtype.itemsize
        if path.stat().st_size != num_bytes:
            size = f"{num_bytes} bytes but has {path.stat().st_size}"
            raise ValueError(
                f"{path} must have {size}: it is damaged. {_PREPARE_AGAIN}"
            )
        # A plain array over the map: slicing `np.memmap` costs four times as much.
        return np.asarray(np.memmap(path, dtype, mode="r", shape=(length,)))


_PREPARE_AGAIN = "Prepare the directory again with `overwrite=True`."


def read_metadata(directory: str | Path) -> dict[str, Any]:
    """Read what `prepare` noted about a directory.

    Args:
        directory: A directory that `keras_gpt.data.prepare` wrote.

    Returns:
        The metadata: counts for each split, vocabulary, source, checksums.

    Raises:
        FileNotFoundError: The directory is not prepared, or not to the end.
        ValueError: `metadata.json` is damaged.
    """
    path = Path(directory) / METADATA_NAME
    if not path.is_file():
        reason = "is not a prepared directory. Run `keras-gpt prepare` first."
        if path.with_name(PROGRESS_NAME).is_file():
            reason = (
                "is prepared only in part. Run the same `keras-gpt prepare` again: "
                "it continues."
            )
        raise FileNotFoundError(f"{directory} {reason}")
    metadata = read_json(path)
    is_whole = matches(metadata, _METADATA) and all(
        matches(split, _SPLIT) for split in metadata["splits"].values()
    )
    if not is_whole or metadata["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"{path} is damaged. {_PREPARE_AGAIN}")
    return metadata


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
