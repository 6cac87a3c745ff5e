"""The gRPC interface of the serving double, with TF Serving's own protocol classes."""

from concurrent.futures import ThreadPoolExecutor

import grpc

from tests.serving.capi import StatusError
from tests.serving.double_predict import predict
from tests.serving.protos import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    meta_graph_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)
from tests.serving.status import CODES

_THREADS = 32
_LONGEST_MS = 2**31 - 1  # gRPC gives some centuries where a client set no deadline


def get_status(models, request) -> get_model_status_pb2.GetModelStatusResponse:
    """Answer a GetModelStatusRequest.

    Raises:
        StatusError: There is no such version.
    """
    if not request.HasField("model_spec"):
        raise StatusError("INVALID_ARGUMENT", "Missing ModelSpec")
    response = get_model_status_pb2.GetModelStatusResponse()
    for version in models.status(request.model_spec):
        item = response.model_version_status.add(version=version.number)
        item.state = item.State.Value(version.state)
        item.status.SetInParent()
        if version.error is not None:
            item.status.error_code = CODES.index(version.error.code)
            item.status.error_message = version.error.message
    return response


def get_metadata(models, request) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Answer a GetModelMetadataRequest.

    Raises:
        StatusError: There is no such version.
    """
    if not request.HasField("model_spec"):
        raise StatusError("INVALID_ARGUMENT", "Missing ModelSpec")
    if not request.metadata_field:
        raise StatusError(
            "INVALID_ARGUMENT",
            "GetModelMetadataRequest must specify at least one metadata_field",
        )
    for name in request.metadata_field:
        if name != "signature_def":
            raise StatusError(
                "INVALID_ARGUMENT", f"Metadata field {name} is not supported"
            )
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    signatures = get_model_metadata_pb2.SignatureDefMap()
    with models.use(request.model_spec) as version:
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version.number
        meta_graph = meta_graph_pb2.MetaGraphDef.FromString(version.model.meta_graph)
        for name, signature in meta_graph.signature_def.items():
            signatures.signature_def[name].CopyFrom(signature)
    response.metadata["signature_def"].Pack(signatures)
    return response


def unpack_signatures(response) -> get_model_metadata_pb2.SignatureDefMap:
    """The signatures of a GetModelMetadataResponse."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return signatures


def _answer(context, function, *arguments):
    """Call, and let an error be the status of the call."""
    try:
        return function(*arguments)
    except StatusError as error:
        context.abort(getattr(grpc.StatusCode, error.code), error.message)


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models, request_count):
        self._models = models
        self._request_count = request_count

    def Predict(self, request, context):  # noqa: N802
        def run():
            code = "OK"
            try:
                remaining = context.time_remaining()
                timeout_ms = None
                if remaining is not None:
                    timeout_ms = int(min(max(1, remaining * 1000), _LONGEST_MS))
                return predict(self._models, request, timeout_ms)
            except StatusError as error:
                code = error.code
                raise
            finally:
                self._request_count.add(request.model_spec.name, code)

        return _answer(context, run)

    def GetModelMetadata(self, request, context):  # noqa: N802
        return _answer(context, get_metadata, self._models, request)


class _Model(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models):
        self._models = models

    def GetModelStatus(self, request, context):  # noqa: N802
        return _answer(context, get_status, self._models, request)


def start_grpc(port: int, models, request_count) -> tuple[grpc.Server, int]:
    """Serve in threads of their own.

    Returns:
        The server, which lives as long as someone holds it, and the port.
    """
    unlimited = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a port in use is an error
    ]
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=unlimited)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        _Prediction(models, request_count), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(models), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port
