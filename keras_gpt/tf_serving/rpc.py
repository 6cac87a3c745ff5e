"""A connection to TensorFlow Serving over gRPC."""

from functools import partial
from typing import Any

import numpy as np

from keras_gpt.installed import require
from keras_gpt.quiet import quiet_tensorflow
from keras_gpt.tf_serving.connection import (
    Connection,
    ServingError,
    UnavailableError,
    VersionStatus,
    describe_signatures,
    describe_versions,
)

_OPTIONS = [
    # answers of any length
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # a server that starts is found as soon as the client tries again
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcConnection(Connection):
    """A `Connection` over gRPC, perhaps with `grpc.ChannelCredentials`."""

    def __init__(self, *arguments, credentials=None):
        super().__init__(*arguments)
        address = "An address without http:// (REST) is gRPC's, which"
        require("tensorflow", address, "tensorflow", "grpc", "tensorflow_serving")
        with quiet_tensorflow():
            import tensorflow as tf  # which the last of the next imports too
        import grpc
        from google.protobuf.json_format import MessageToDict
        from tensorflow_serving.apis import (
            get_model_metadata_pb2,
            get_model_status_pb2,
            model_service_pb2_grpc,
            predict_pb2,
            prediction_service_pb2_grpc,
        )

        self._grpc = grpc
        self._tf = tf
        self._to_dict = partial(MessageToDict, preserving_proto_field_name=True)
        self._messages = (predict_pb2, get_model_metadata_pb2, get_model_status_pb2)
        if credentials is None:
            self._channel = grpc.insecure_channel(self._address, _OPTIONS)
        else:
            self._channel = grpc.secure_channel(self._address, credentials, _OPTIONS)
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
            request.inputs[name].CopyFrom(self._tf.make_tensor_proto(array))
        response = self._send(self._prediction.Predict, request, seconds)
        return {
            name: _decode(self._tf.make_ndarray(proto))
            for name, proto in response.outputs.items()
        }

    def metadata(self, seconds: float) -> dict[str, Any]:
        """See `Connection`."""
        messages = self._messages[1]
        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        response = self._send(self._prediction.GetModelMetadata, request, seconds)
        signatures = messages.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return describe_signatures(self._to_dict(signatures)["signature_def"])

    def status(self, seconds: float) -> list[VersionStatus]:
        """See `Connection`."""
        request = self._messages[2].GetModelStatusRequest()
        response = self._send(self._models.GetModelStatus, request, seconds)
        return describe_versions(self._to_dict(response))

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
            raise self._too_late(f"It had {seconds:.3g} seconds.")
        if code == "UNAVAILABLE":
            if "failed to connect" in message or "Socket closed" in message:
                raise self._no_server(message)
            raise UnavailableError(code, message)
        raise ServingError(code, message)


def _decode(array: np.ndarray) -> np.ndarray:
    """Strings as `str`; numbers stay."""
    if array.dtype != object:
        return array
    texts = [text.decode("utf-8", "replace") for text in array.ravel()]
    return np.array(texts, object).reshape(array.shape)
