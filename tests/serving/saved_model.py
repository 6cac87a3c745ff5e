"""What a SavedModel's file says, read without the generated classes of protobuf.

The few messages that are needed are read by their field numbers, so that a process
needs neither TensorFlow Python nor anything else but this.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a signature.

    Args:
        name: In the graph, as `"serve_prompt:0"`.
        dtype: An enum of `DTYPES`.
        shape: `None` where it is unknown.
    """

    name: str
    dtype: int
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a signature by their names."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message as (number, value)."""
    position = 0

    def varint():
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        key = varint()
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(wire_type) or varint()
        yield number, message[position : position + size]
        position += size


def _select(message, number: int) -> list:
    """All values of one field."""
    return [value for n, value in _fields(message) if n == number]


def _text(value) -> str:
    return bytes(value).decode()


def read_signatures(meta_graph: bytes) -> Iterator[tuple[str, Signature]]:
    """Names and signatures of a serialized MetaGraphDef."""
    for entry in _select(memoryview(meta_graph), 5):  # MetaGraphDef.signature_def
        name, signature = _select(entry, 1), _select(entry, 2)
        tensors = [
            {
                _text(_select(item, 1)[0]): _read_tensor_info(_select(item, 2)[0])
                for item in _select(signature[0], number)
            }
            for number in (1, 2)  # SignatureDef.inputs, .outputs
        ]
        yield _text(name[0]), Signature(*tensors)


def _read_tensor_info(message) -> TensorInfo:
    name, dtype, shape = "", 0, ()
    for number, value in _fields(message):
        if number == 1:
            name = _text(value)
        elif number == 2:
            dtype = value
        elif number == 3:
            sizes = [(_select(dim, 1) or [0])[0] for dim in _select(value, 2)]
            shape = tuple(None if size >> 63 else size for size in sizes)
            if any(_select(value, 3)):  # unknown_rank
                shape = None
    return TensorInfo(name, dtype, shape)


def graph_ops(path: str | Path) -> set[str]:
    """Names of all ops in a SavedModel's graph and its functions.

    `_XlaMustCompile` is among them where that attribute is true: `jit_compile=True`.
    """
    data = memoryview((Path(path) / "saved_model.pb").read_bytes())
    ops = set()

    def add_node(node):
        ops.update(_text(op) for op in _select(node, 2))
        add_attributes(_select(node, 5))

    def add_attributes(entries):
        for entry in entries:
            if bytes(_select(entry, 1)[0]) == b"_XlaMustCompile" and any(
                any(_select(value, 5)) for value in _select(entry, 2)
            ):
                ops.add("_XlaMustCompile")

    for meta_graph in _select(data, 2):
        for graph in _select(meta_graph, 2):
            for node in _select(graph, 1):
                add_node(node)
            for library in _select(graph, 2):
                for function in _select(library, 1):
                    add_attributes(_select(function, 5))
                    for node in _select(function, 3):
                        add_node(node)
    return ops
