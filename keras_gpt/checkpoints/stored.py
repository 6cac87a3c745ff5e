"""Tensors in files, read one at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

CHUNK = 2**22  # bytes that are read at once
_PLAIN = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and how it is stored.

    Args:
        name: Of the tensor.
        path: The file.
        offset: Bytes before it.
        shape: As of a NumPy array, the last axis contiguous.
        kind: The format's name of the type, such as `"BF16"` or `"Q4_1"`.
    """

    name: str
    path: Path
    offset: int
    shape: tuple[int, ...]
    kind: str

    def read_rows(self) -> Iterator[np.ndarray]:
        """The values, some rows at a time; what is quantized becomes float32.

        Raises:
            ValueError: The type can't be read, or the file was shortened.
        """
        for rows in self._chunks():
            plain = _PLAIN.get(self.kind)
            rows = self._dequantize(rows) if plain is None else rows.view(plain)
            yield rows.reshape(-1, *self.shape[1:])

    def has_same_bytes(self, other: "StoredTensor") -> bool:
        """Whether the other tensor is a copy of this one."""
        return (self.shape, self.kind) == (other.shape, other.kind) and all(
            np.array_equal(ours, theirs)
            for ours, theirs in zip(self._chunks(), other._chunks(), strict=True)
        )

    def _chunks(self):
        """The bytes, `(rows, bytes of a row)`, some rows at a time."""
        *others, width = self.shape
        num_rows = math.prod(others)
        if self.kind in _PLAIN:
            row_bytes = width * _PLAIN[self.kind].itemsize
        else:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

            if self.kind not in GGMLQuantizationType.__members__:
                raise self._unreadable()
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
            row_bytes = width // block * size
        step = max(1, CHUNK // (4 * width))
        # not mapped: pages of a mapped file would stay in memory
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, num_rows, step):
                size = min(step, num_rows - start) * row_bytes
                data = np.fromfile(file, np.uint8, size)
                if data.size < size:
                    raise ValueError(
                        f"{self.path} isn't whole: the end of {self.name} is missing. "
                        "Download it again."
                    )
                yield data.reshape(-1, row_bytes)

    def _dequantize(self, rows):
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            return dequantize(rows, GGMLQuantizationType[self.kind])
        except NotImplementedError as error:
            raise self._unreadable() from error

    def _unreadable(self):
        return ValueError(
            f"{self.name} is stored as {self.kind}, which isn't supported. Load the "
            "original weights, or a GGUF file such as Q8_0 or Q4_K."
        )
