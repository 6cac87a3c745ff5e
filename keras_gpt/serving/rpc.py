"""A connection to TensorFlow Serving over gRPC."""

from typing import Any

import numpy as np

from keras_gpt.serving.connection import (
    DTYPE_NAMES,
    INITIALIZER,
    ServingError,
    UnavailableError,
    VersionStatus,
    no_server,
    too_late,
)

_FIELDS = {  # {dtype: (number in types.proto, field of TensorProto)}
    "float32": (1, "float_val"),
    "float64": (2, "double_val"),
    "int32": (3, "int_val"),
    "object": (7, "string_val"),
    "int64": (9, "int64_val"),
    "bool": (10, "bool_val"),
}
_DTYPES = {number: (dtype, field) for dtype, (number, field) in _FIELDS.items()}
_OPTIONS = [
    # answers of any length
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # a server that starts is found as soon as the client tries again
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcConnection:
    """A `Connection` over gRPC; threads may share it.

    Args:
        address: `"host:port"`.
        model: Its name.
        version: Its version, or `None`.
        label: A label of versions, or `None`.
        credentials: `grpc.ChannelCredentials`, or `None` for no encryption.
    """

    def __init__(
        self,
        address: str,
        model: str,
        version: int | None,
        label: str | None,
        credentials=None,
    ):
        try:
            import grpc
            from tensorflow_serving.apis import (
                get_model_metadata_pb2,
                get_model_status_pb2,
                model_service_pb2_grpc,
                predict_pb2,
                prediction_service_pb2_grpc,
            )
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "gRPC needs a package: pip install tensorflow-serving-api. REST "
                "doesn't: begin the address with http://."
            ) from error
        self._grpc = grpc
        self._messages = (predict_pb2, get_model_metadata_pb2, get_model_status_pb2)
        self._address = address
        self._model = model
        self._version = version
        self._label = label
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, credentials, _OPTIONS)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(
            self._channel
        )
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(
        self, signature: str, inputs: dict[str, np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        """See `Connection`."""
        request = self._messages[0].PredictRequest()
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            _fill_tensor(request.inputs[name], array)
        response = self._send(self._prediction.Predict, request, seconds)
        return {name: _read_tensor(proto) for name, proto in response.outputs.items()}

    def metadata(self, seconds: float) -> dict[str, Any]:
        """See `Connection`."""
        messages = self._messages[1]
        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        response = self._send(self._prediction.GetModelMetadata, request, seconds)
        signatures = messages.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return {
            name: {
                "inputs": _describe(signature.inputs),
                "outputs": _describe(signature.outputs),
            }
            for name, signature in sorted(signatures.signature_def.items())
            if name != INITIALIZER
        }

    def status(self, seconds: float) -> list[VersionStatus]:
        """See `Connection`."""
        request = self._messages[2].GetModelStatusRequest()
        response = self._send(self._models.GetModelStatus, request, seconds)
        return [
            VersionStatus(
                item.version, item.State.Name(item.state), item.status.error_message
            )
            for item in response.model_version_status
        ]

    def close(self) -> None:
        """See `Connection`."""
        self._channel.close()

    def _send(self, method, request, seconds: float):
        spec = request.model_spec
        spec.name = self._model
        if self._version is not None:
            spec.version.value = self._version
        elif self._label is not None:
            spec.version_label = self._label
        try:
            return method(request, timeout=seconds)
        except self._grpc.RpcError as error:
            code, message = error.code().name, error.details() or ""
        if code == "DEADLINE_EXCEEDED":
            raise too_late(self._address, f"It had {seconds:.3g} seconds.")
        if code == "UNAVAILABLE":
            if "failed to connect" in message or "Socket closed" in message:
                raise no_server(self._address, False, self._model, message)
            raise UnavailableError(code, message)
        raise ServingError(code, message)


def _fill_tensor(proto, array: np.ndarray) -> None:
    """Write an array into a TensorProto."""
    proto.dtype, field = _FIELDS[array.dtype.name]
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    flat = array.ravel().tolist()
    if array.dtype == object:
        flat = [text.encode() for text in flat]
    getattr(proto, field).extend(flat)


def _read_tensor(proto) -> np.ndarray:
    """The array in a TensorProto, as the server writes it in either of two ways."""
    if proto.dtype not in _DTYPES:
        raise ServingError(
            "INTERNAL", f"An output has the unknown dtype {proto.dtype}."
        )
    dtype, field = _DTYPES[proto.dtype]
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_content and dtype != "object":
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values = list(getattr(proto, field))
    if dtype == "object":
        values = [value.decode("utf-8", "replace") for value in values]
    return np.array(values, dtype).reshape(shape)


def _describe(tensors) -> dict[str, dict[str, Any]]:
    """Dtype and shape of each input or output."""
    described = {}
    for name, info in sorted(tensors.items()):
        shape = info.tensor_shape
        sizes = tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
        enum = info.DESCRIPTOR.fields_by_name["dtype"].enum_type
        dtype = enum.values_by_number[info.dtype].name
        described[name] = {
            "dtype": DTYPE_NAMES.get(dtype, dtype),
            "shape": None if shape.unknown_rank else sizes,
        }
    return described
