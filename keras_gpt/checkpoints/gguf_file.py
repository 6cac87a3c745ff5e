"""A GGUF file's header and, one at a time, its tensors.

The `gguf` package's own reader makes an array for each token of the vocabulary, which
takes seconds, keeps pages of the file in memory, and trusts the sizes in the file.

References:
    - [The format](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
"""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_CHUNK = 2**22  # bytes of float32 that are dequantized at once
_LARGEST_COUNT = 2**24  # of tensors, settings, or items of an array
_LARGEST_STRING = 2**26
# Types of values in the header, by their numbers there
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": ml_dtypes.bfloat16}
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and how it is stored.

    Args:
        path: The file.
        offset: Bytes before it.
        shape: As of a NumPy array, the last axis contiguous.
        type: A `gguf.GGMLQuantizationType`.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    type: Any

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, which is all of a vector."""
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // block * size

    @property
    def num_rows(self) -> int:
        """Product of the axes but the last."""
        return math.prod(self.shape[:-1])

    def read(self) -> np.ndarray:
        """The values: float16, bfloat16 or float32; what is quantized becomes float32.

        Raises:
            ValueError: The file was shortened since its header was read.
        """
        if self.type.name in _PLAIN:
            stored = self._read_bytes(0, self.num_rows).view(_PLAIN[self.type.name])
            return stored.reshape(self.shape)
        from gguf.quants import dequantize

        values = np.empty((self.num_rows, self.shape[-1]), "float32")
        step = max(1, _CHUNK // (4 * self.shape[-1]))
        for start in range(0, self.num_rows, step):
            stop = min(start + step, self.num_rows)
            rows = self._read_bytes(start, stop).reshape(stop - start, self.row_bytes)
            values[start:stop] = dequantize(rows, self.type)
        return values.reshape(self.shape)

    def has_same_bytes(self, other: "TensorInfo") -> bool:
        """Whether the other tensor is a copy of this one."""
        if (self.shape, self.type) != (other.shape, other.type):
            return False
        step = max(1, _CHUNK // self.row_bytes)
        for start in range(0, self.num_rows, step):
            stop = min(start + step, self.num_rows)
            ours, theirs = (t._read_bytes(start, stop) for t in (self, other))
            if not np.array_equal(ours, theirs):
                return False
        return True

    def _read_bytes(self, start, stop):
        size = (stop - start) * self.row_bytes
        # opened each time: pages of a mapped file would stay in memory
        with self.path.open("rb") as file:
            file.seek(self.offset + start * self.row_bytes)
            data = np.fromfile(file, np.uint8, size)
        if data.size != size:
            raise _damaged(self.path, "its tensors are cut off")
        return data


def read_gguf_file(path: str | Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Read the header of a GGUF file, or of all parts of one that is split.

    Args:
        path: The file, or the first part, `name-00001-of-00003.gguf`.

    Returns:
        The settings by key, and the tensors by name.

    Raises:
        FileNotFoundError: The file or a part is missing.
        ValueError: A file is damaged, or isn't GGUF.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no GGUF file {path}.")
    settings, tensors = _Header(path).read()
    count = settings.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return settings, tensors
    part = _PART.search(path.name)
    if not part or int(part[2]) != count or settings.get("split.no") != 0:
        raise ValueError(
            f"{path} is a part of a split model. Give the first, whose name ends with "
            f"-00001-of-{count:05}.gguf, with the others beside it."
        )
    for number in range(2, count + 1):
        name = _PART.sub(f"-{number:05}-of-{count:05}.gguf", path.name)
        if not path.with_name(name).is_file():
            raise FileNotFoundError(
                f"{path} is one of {count} parts, and {name} isn't beside it."
            )
        tensors |= _Header(path.with_name(name)).read()[1]
    return settings, tensors


def _damaged(path, what):
    return ValueError(
        f"{path} isn't a whole GGUF file: {what}. It may be truncated: download it "
        "again."
    )


class _Header:
    """Reads the header front to back and trusts none of its numbers."""

    def __init__(self, path):
        self._path = path
        self._size = path.stat().st_size

    def read(self):
        with self._path.open("rb") as self._file:
            self._check_version()
            num_tensors, num_settings = self._count(24), self._count(13)
            settings = {}
            for _ in range(num_settings):
                key = self._string()
                settings[key] = self._value(self._number("<u4"))
            tensors = [self._tensor() for _ in range(num_tensors)]
            alignment = settings.get("general.alignment", 32)
            if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
                raise self._damaged(f"general.alignment is {alignment}")
            start = -(-self._file.tell() // alignment) * alignment
        return settings, self._place(tensors, start)

    def _check_version(self):
        if self._take(4) != b"GGUF":
            raise ValueError(
                f"{self._path} isn't a GGUF file: it doesn't begin with 'GGUF'."
            )
        version = self._number("<u4")
        if version not in (2, 3):
            kind = "big-endian" if version and version % 2**16 == 0 else f"{version}"
            raise ValueError(
                f"{self._path} has the GGUF version {kind}; 2 and 3 are supported, "
                "little-endian. Convert the model again with llama.cpp."
            )

    def _damaged(self, what):
        return _damaged(self._path, what)

    def _take(self, size):
        if size > self._size - self._file.tell():
            raise self._damaged("its header is cut off")
        return self._file.read(size)

    def _number(self, dtype):
        return np.frombuffer(self._take(np.dtype(dtype).itemsize), dtype)[0].item()

    def _count(self, item_size):
        """A number of items, of which each takes at least some bytes."""
        [count] = struct.unpack("<Q", self._take(8))
        if count > _LARGEST_COUNT:
            raise self._damaged(f"it claims {count} items in its header")
        if count * item_size > self._size - self._file.tell():
            raise self._damaged("its header is cut off")
        return count

    def _string(self):
        [size] = struct.unpack("<Q", self._take(8))
        if size > _LARGEST_STRING:
            raise self._damaged(f"it claims a text of {size} bytes in its header")
        # some tokens are parts of characters
        return self._take(size).decode("utf-8", "replace")

    def _value(self, kind):
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _NUMBERS:
            raise self._damaged(f"it has a value of the unknown type {kind}")
        value = self._number(_NUMBERS[kind])
        # 1e-5, not 9.999999747378752e-06
        return float(str(np.float32(value))) if _NUMBERS[kind] == "<f4" else value

    def _array(self):
        kind = self._number("<u4")
        if kind == _STRING:
            return [self._string() for _ in range(self._count(8))]
        if kind not in _NUMBERS:
            raise self._damaged(f"it has an array of the unknown type {kind}")
        dtype = np.dtype(_NUMBERS[kind])
        size = self._count(dtype.itemsize) * dtype.itemsize
        return np.frombuffer(self._take(size), dtype).tolist()

    def _tensor(self):
        from gguf import GGMLQuantizationType

        name = self._string()
        num_axes = self._number("<u4")
        if not 1 <= num_axes <= 4:
            raise self._damaged(f"its tensor {name!r} has {num_axes} axes")
        shape = tuple(self._number("<u8") for _ in range(num_axes))[::-1]
        kind = self._number("<u4")
        if kind not in list(GGMLQuantizationType):
            raise self._damaged(f"its tensor {name!r} has the unknown type {kind}")
        return name, shape, GGMLQuantizationType(kind), self._number("<u8")

    def _place(self, tensors, start):
        from gguf import GGML_QUANT_SIZES

        for kind in {kind for _, _, kind, _ in tensors}:
            _check_readable(self._path, kind)
        placed = {}
        for name, shape, kind, offset in tensors:
            block, size = GGML_QUANT_SIZES[kind]
            if name in placed or 0 in shape or shape[-1] % block:
                raise self._damaged(
                    f"its tensor {name!r} is of {kind.name} with the shape {shape}, or "
                    "is there twice"
                )
            if start + offset + math.prod(shape) // block * size > self._size:
                raise self._damaged(f"the end of its tensor {name!r} is missing")
            placed[name] = TensorInfo(self._path, start + offset, shape, kind)
        return placed


def _check_readable(path, kind):
    """Raise `ValueError` unless the `gguf` package can dequantize the type."""
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    if kind.name in _PLAIN:
        return
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError as error:
        raise ValueError(
            f"{path} has tensors of the type {kind.name}, which the gguf package "
            "doesn't read. Use a file with another quantization, such as Q8_0 or Q4_K."
        ) from error
