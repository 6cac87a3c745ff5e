"""A GGUF file's header: its settings, and where its tensors are.

The `gguf` package's own reader makes an array for each token of the vocabulary, which
takes seconds, keeps pages of the file in memory, and trusts the sizes in the file.

References:
    - [The format](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from keras_gpt.checkpoints.stored import StoredTensor

_LARGEST_COUNT = 2**24  # of tensors, settings, or items of an array
_LARGEST_STRING = 2**26
# Types of values in the header, at their numbers there
_TYPES = ("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "string", "array")
_TYPES += ("<u8", "<i8", "<f8")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def read_gguf_file(path: str | Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
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
                settings[key] = self._value()
            placed = [self._placed() for _ in range(num_tensors)]
            alignment = settings.get("general.alignment", 32)
            if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
                raise self._damaged(f"general.alignment is {alignment}")
            start = -(-self._file.tell() // alignment) * alignment
        tensors = {}
        for name, shape, kind, offset in placed:
            if name in tensors:
                raise self._damaged(f"its tensor {name!r} is there twice")
            self._check_place(name, shape, kind, start + offset)
            place = (name, self._path, start + offset)
            tensors[name] = StoredTensor(*place, shape, kind.name)
        return settings, tensors

    def _check_version(self):
        if self._take(4) != b"GGUF":
            raise ValueError(f"{self._path} is no GGUF: it doesn't begin with 'GGUF'.")
        version = self._number("<u4")
        if version not in (2, 3):
            kind = "big-endian" if version and version % 2**16 == 0 else f"{version}"
            raise ValueError(
                f"{self._path} has the GGUF version {kind}; it must be little-endian, "
                "2 or 3. Convert the model again with llama.cpp."
            )

    def _damaged(self, what):
        return ValueError(
            f"{self._path} isn't a whole GGUF file: {what}. Download it again."
        )

    def _take(self, size):
        if size > self._size - self._file.tell():
            raise self._damaged("its header is cut off")
        return self._file.read(size)

    def _number(self, dtype):
        return np.frombuffer(self._take(np.dtype(dtype).itemsize), dtype)[0].item()

    def _count(self, item_size):
        """A number of items, of which each takes at least some bytes."""
        count = self._number("<u8")
        if count > _LARGEST_COUNT:
            raise self._damaged(f"it claims {count} items in its header")
        if count * item_size > self._size - self._file.tell():
            raise self._damaged("its header is cut off")
        return count

    def _string(self):
        size = self._number("<u8")
        if size > _LARGEST_STRING:
            raise self._damaged(f"it claims a text of {size} bytes in its header")
        # some tokens are parts of characters
        return self._take(size).decode("utf-8", "replace")

    def _value(self):
        kind = self._type()
        if kind == "string":
            return self._string()
        if kind == "array":
            return self._array()
        value = self._number(kind)
        # 1e-5, not 9.999999747378752e-06
        return float(str(np.float32(value))) if kind == "<f4" else value

    def _array(self):
        kind = self._type()
        if kind == "string":
            return [self._string() for _ in range(self._count(8))]
        if kind == "array":
            raise self._damaged("it has an array of arrays")
        item_size = np.dtype(kind).itemsize
        data = self._take(self._count(item_size) * item_size)
        return np.frombuffer(data, kind).tolist()

    def _type(self):
        number = self._number("<u4")
        if number >= len(_TYPES):
            raise self._damaged(f"it has a value of the unknown type {number}")
        return _TYPES[number]

    def _placed(self):
        """Name, shape and type of a tensor, and where it is after the header."""
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

    def _check_place(self, name, shape, kind, offset):
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[-1] % block:
            what = f"is of {kind.name} with the shape {shape}"
            raise self._damaged(f"its tensor {name!r} {what}")
        if offset + math.prod(shape) // block * size > self._size:
            raise self._damaged(f"the end of its tensor {name!r} is missing")
