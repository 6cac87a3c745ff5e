"""SavedModels loaded by TensorFlow's C API, with neither TensorFlow Python nor Keras.

`TF_LoadSessionFromSavedModel` is the C++ loader that TensorFlow Serving calls, and the
libraries are those of the TensorFlow wheel with the ops of tensorflow-text, which the
stock server links too. So a model that runs here needs nothing but the SavedModel. XLA
is off unless asked for, as in the server.

Import this in a process of its own: the package `tensorflow` stays empty there, and
only its protocol classes load.
"""

# ruff: noqa: E402 the imports need the empty module

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np

if "tensorflow" in sys.modules:
    raise ImportError("This needs a process without TensorFlow Python.")
# its own module, without its code having run
sys.modules["tensorflow"] = importlib.util.module_from_spec(
    importlib.util.find_spec("tensorflow")
)

from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

STRING = 7
DTYPES = {  # of tensorflow/core/framework/types.proto
    1: "float32",
    2: "float64",
    3: "int32",
    STRING: "object",
    9: "int64",
    10: "bool",
}
ENUMS = {name: enum for enum, name in DTYPES.items()}
CODES = [  # as numbered by absl::StatusCode
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
]
_STRING_BYTES = 24  # sizeof(TF_TString)
_SYMBOL_OF_XLA_SWITCH = "_ZN10tensorflow21DisableXlaCompilationEv"


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("length", c_size_t),
        ("deallocator", c_void_p),
    ]


class _Output(ctypes.Structure):
    _fields_ = [("operation", c_void_p), ("index", c_int)]


_FUNCTIONS = {  # name: (result, arguments)
    "TF_NewStatus": (c_void_p, []),
    "TF_DeleteStatus": (None, [c_void_p]),
    "TF_GetCode": (c_int, [c_void_p]),
    "TF_Message": (c_char_p, [c_void_p]),
    "TF_NewSessionOptions": (c_void_p, []),
    "TF_DeleteSessionOptions": (None, [c_void_p]),
    "TF_NewGraph": (c_void_p, []),
    "TF_DeleteGraph": (None, [c_void_p]),
    "TF_NewBuffer": (POINTER(_Buffer), []),
    "TF_NewBufferFromString": (POINTER(_Buffer), [c_char_p, c_size_t]),
    "TF_DeleteBuffer": (None, [POINTER(_Buffer)]),
    "TF_LoadLibrary": (c_void_p, [c_char_p, c_void_p]),
    "TF_LoadSessionFromSavedModel": (
        c_void_p,
        [
            c_void_p,
            POINTER(_Buffer),
            c_char_p,
            POINTER(c_char_p),
            c_int,
            c_void_p,
            POINTER(_Buffer),
            c_void_p,
        ],
    ),
    "TF_CloseSession": (None, [c_void_p, c_void_p]),
    "TF_DeleteSession": (None, [c_void_p, c_void_p]),
    "TF_GraphOperationByName": (c_void_p, [c_void_p, c_char_p]),
    "TF_SessionRun": (
        None,
        [
            c_void_p,
            POINTER(_Buffer),
            POINTER(_Output),
            POINTER(c_void_p),
            c_int,
            POINTER(_Output),
            POINTER(c_void_p),
            c_int,
            c_void_p,
            c_int,
            c_void_p,
            c_void_p,
        ],
    ),
    "TF_AllocateTensor": (c_void_p, [c_int, POINTER(c_int64), c_int, c_size_t]),
    "TF_DeleteTensor": (None, [c_void_p]),
    "TF_TensorData": (c_void_p, [c_void_p]),
    "TF_TensorType": (c_int, [c_void_p]),
    "TF_NumDims": (c_int, [c_void_p]),
    "TF_Dim": (c_int64, [c_void_p, c_int]),
    "TF_StringInit": (None, [c_void_p]),
    "TF_StringCopy": (None, [c_void_p, c_char_p, c_size_t]),
    "TF_StringDealloc": (None, [c_void_p]),
    "TF_StringGetDataPointer": (c_void_p, [c_void_p]),
    "TF_StringGetSize": (c_size_t, [c_void_p]),
}
_tf = {}  # the C functions by name, once loaded


class StatusError(Exception):
    """What TensorFlow says of a call that failed.

    Args:
        code: A name of `CODES`.
        message: In English.
    """

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def load_tensorflow(*, xla: bool = False) -> None:
    """Load TensorFlow's libraries, once.

    Args:
        xla: Whether XLA may compile, which holds for the whole process: the server's
            `--xla_cpu_compilation_enabled`.
    """
    if _tf:
        return
    folder = folder_of("tensorflow")
    libraries = [
        ctypes.CDLL(str(folder / name))
        for name in ("libtensorflow_cc.so.2", "libtensorflow_framework.so.2")
    ]
    for name, (result, arguments) in _FUNCTIONS.items():
        library = next(lib for lib in libraries if hasattr(lib, name))
        _tf[name] = getattr(library, name)
        _tf[name].restype = result
        _tf[name].argtypes = arguments
    if not xla:
        getattr(libraries[0], _SYMBOL_OF_XLA_SWITCH)()
    for path in sorted(folder_of("tensorflow_text").rglob("*.so")):
        with _status() as status:
            _tf["TF_LoadLibrary"](str(path).encode(), status)


def folder_of(package: str) -> Path:
    """Where a package is, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"{package} isn't installed.")
    return Path(spec.submodule_search_locations[0])


@contextmanager
def _status() -> Iterator[int]:
    """A status for the calls inside, read after them."""
    status = _tf["TF_NewStatus"]()
    try:
        yield status
        code = _tf["TF_GetCode"](status)
        if code:
            message = _tf["TF_Message"](status).decode("utf-8", "replace")
            raise StatusError(CODES[code], message)
    finally:
        _tf["TF_DeleteStatus"](status)


class Model:
    """A SavedModel in a session of its own. Threads may call it at once.

    Args:
        path: The version folder.

    Raises:
        StatusError: It can't be loaded.
    """

    def __init__(self, path: str | Path):
        load_tensorflow()
        self._graph = _tf["TF_NewGraph"]()
        options = _tf["TF_NewSessionOptions"]()
        meta_graph = _tf["TF_NewBuffer"]()
        try:
            with _status() as status:
                self._session = _tf["TF_LoadSessionFromSavedModel"](
                    options,
                    None,
                    os.fsencode(path),
                    (c_char_p * 1)(b"serve"),
                    1,
                    self._graph,
                    meta_graph,
                    status,
                )
            buffer = meta_graph.contents
            content = ctypes.string_at(buffer.data, buffer.length)
        except StatusError:
            _tf["TF_DeleteGraph"](self._graph)
            raise
        finally:
            _tf["TF_DeleteBuffer"](meta_graph)
            _tf["TF_DeleteSessionOptions"](options)
        #: `SignatureDef`s by name.
        self.signatures = meta_graph_pb2.MetaGraphDef.FromString(content).signature_def

    def run(
        self,
        signature: str,
        inputs: dict,
        timeout_ms: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Call a signature.

        Args:
            signature: Its name.
            inputs: By name, arrays, fed as they are, or lists, which take the dtype of
                the signature. Strings are bytes.
            timeout_ms: After that long it is cancelled: DEADLINE_EXCEEDED.

        Returns:
            Arrays by name, those of strings with dtype object.

        Raises:
            StatusError: TensorFlow refuses the inputs, or fails.
        """
        known = self.signatures[signature]
        outputs = list(known.outputs)
        feeds = [self._output(known.inputs[name].name) for name in inputs]
        fetches = [self._output(known.outputs[name].name) for name in outputs]
        run_options = config_pb2.RunOptions(timeout_in_ms=timeout_ms)
        content = run_options.SerializeToString()
        buffer = _tf["TF_NewBufferFromString"](content, len(content))
        fed = (c_void_p * len(feeds))()
        fetched = (c_void_p * len(fetches))()
        try:
            for i, (name, value) in enumerate(inputs.items()):
                fed[i] = _to_tensor(value, known.inputs[name].dtype)
            with _status() as status:
                _tf["TF_SessionRun"](
                    self._session,
                    buffer,
                    (_Output * len(feeds))(*feeds),
                    fed,
                    len(feeds),
                    (_Output * len(fetches))(*fetches),
                    fetched,
                    len(fetches),
                    None,
                    0,
                    None,
                    status,
                )
            return {
                name: _to_array(tensor)
                for name, tensor in zip(outputs, fetched, strict=True)
            }
        finally:
            # Outputs first: one may share the memory of an input.
            for tensor in filter(None, fetched):
                _tf["TF_DeleteTensor"](tensor)
            for tensor in filter(None, fed):
                _delete_own_tensor(tensor)
            _tf["TF_DeleteBuffer"](buffer)

    def close(self) -> None:
        """Free the session. No call may be under way."""
        if self._session is None:
            return
        session, self._session = self._session, None
        with _status() as status:
            _tf["TF_CloseSession"](session, status)
        with _status() as status:
            _tf["TF_DeleteSession"](session, status)
        _tf["TF_DeleteGraph"](self._graph)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _output(self, name: str) -> _Output:
        operation, index = name.rsplit(":", 1)
        found = _tf["TF_GraphOperationByName"](self._graph, operation.encode())
        if found is None:
            raise StatusError("INVALID_ARGUMENT", f"{operation} isn't in the graph.")
        return _Output(found, int(index))


def _to_tensor(value, dtype: int) -> int:
    """A new TF_Tensor that holds the values of an array or list."""
    if not isinstance(value, np.ndarray):
        value = np.array(value, DTYPES[dtype])
    if value.dtype.kind in "SUO":
        flat = [v.encode() if isinstance(v, str) else v for v in value.ravel().tolist()]
        tensor = _allocate(STRING, value.shape, _STRING_BYTES * value.size)
        start = _tf["TF_TensorData"](tensor)
        for i, item in enumerate(flat):
            _tf["TF_StringInit"](start + i * _STRING_BYTES)
            _tf["TF_StringCopy"](start + i * _STRING_BYTES, item, len(item))
        return tensor
    value = np.ascontiguousarray(value).reshape(value.shape)
    tensor = _allocate(ENUMS[value.dtype.name], value.shape, value.nbytes)
    if value.nbytes:
        ctypes.memmove(
            _tf["TF_TensorData"](tensor), value.ctypes.data_as(c_void_p), value.nbytes
        )
    return tensor


def _allocate(dtype: int, shape: tuple[int, ...], num_bytes: int) -> int:
    dims = (c_int64 * max(1, len(shape)))(*shape)
    return _tf["TF_AllocateTensor"](dtype, dims, len(shape), num_bytes)


def _shape(tensor: int) -> list[int]:
    return [_tf["TF_Dim"](tensor, i) for i in range(_tf["TF_NumDims"](tensor))]


def _to_array(tensor: int) -> np.ndarray:
    """A copy of a TF_Tensor's values."""
    shape = _shape(tensor)
    dtype = _tf["TF_TensorType"](tensor)
    if dtype not in DTYPES:
        raise StatusError("UNIMPLEMENTED", f"No tensors of dtype {dtype} here.")
    array = np.empty(shape, DTYPES[dtype])
    start = _tf["TF_TensorData"](tensor)
    if dtype == STRING:
        flat = array.reshape(-1)
        for i in range(array.size):
            string = start + i * _STRING_BYTES
            flat[i] = ctypes.string_at(
                _tf["TF_StringGetDataPointer"](string),
                _tf["TF_StringGetSize"](string),
            )
    elif array.nbytes:
        ctypes.memmove(array.ctypes.data_as(c_void_p), start, array.nbytes)
    return array


def _delete_own_tensor(tensor: int) -> None:
    """Free a tensor of `_to_tensor`, whose strings TF_DeleteTensor would leak."""
    if _tf["TF_TensorType"](tensor) == STRING:
        start = _tf["TF_TensorData"](tensor)
        for i in range(int(np.prod(_shape(tensor), dtype=int))):
            _tf["TF_StringDealloc"](start + i * _STRING_BYTES)
    _tf["TF_DeleteTensor"](tensor)
