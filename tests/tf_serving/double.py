"""SERVING DOUBLE for tests: not TensorFlow Serving.

The tests have no TensorFlow Serving at hand. This stands in for it, as far as a client
calls it: Predict, GetModelMetadata and GetModelStatus over gRPC and REST, versions and
labels, errors in the server's words. Models are loaded by the C++ loader that it uses,
with XLA off (see `capi.py`). It can't show that the server's own binary behaves so, nor
its speed. It doesn't batch, replay warm-up requests or look for new versions: what it
reads of its flags is below.

    python -m tests.tf_serving.double --model_name docs --model_base_path DIR
        [--port 8500] [--rest_api_port 8501] [--model_config_file models.config] ...

Port 0 picks a free one. It prints the addresses once the models are loaded, and ends
when its standard input does.
"""

import argparse
import json
import os
import re
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import grpc
import numpy as np
from google.protobuf import json_format, text_format

from tests.tf_serving.capi import DTYPES, Model, StatusError, load_tensorflow

# isort: split
# only now, as `capi` has put an empty package in the place of `tensorflow`
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

BANNER = "SERVING DOUBLE for tests: not TensorFlow Serving"
METRICS_PATH = "/monitoring/prometheus/metrics"
_LONGEST_MS = 2**31 - 1  # gRPC gives some centuries where a client set no deadline
_FIELDS = {  # the repeated field of TensorProto for each dtype
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "object": "string_val",
    "int64": "int64_val",
    "bool": "bool_val",
}


# Models and their versions


@dataclass
class Version:
    """A version of a model, loaded."""

    number: int
    model: Model


class Models:
    """All models of the server.

    Args:
        configs: A `ModelConfig` for each.

    Raises:
        StatusError: A version can't be loaded, or there is none.
    """

    def __init__(self, configs):
        self._labels = {config.name: dict(config.version_labels) for config in configs}
        self._versions = {config.name: _load(config) for config in configs}

    def find(self, spec) -> Version:
        """The version that a `ModelSpec` asks for."""
        versions = self._versions.get(spec.name, {})
        number, asked = spec.version.value, f"Specific({spec.name}, "
        match spec.WhichOneof("version_choice"):
            case None:
                number, asked = max(versions, default=-1), f"Latest({spec.name}"
            case "version_label":
                number = self._labels.get(spec.name, {}).get(spec.version_label)
                if number is None:
                    raise StatusError(
                        "INVALID_ARGUMENT",
                        f"Unrecognized servable version label: {spec.version_label}",
                    )
                asked += str(number)
            case "version":
                asked += str(number)
        if number not in versions:
            raise StatusError("NOT_FOUND", f"Servable not found for request: {asked})")
        return versions[number]

    def status(self, request) -> get_model_status_pb2.GetModelStatusResponse:
        """Answer a GetModelStatusRequest, which a label doesn't change."""
        spec = request.model_spec
        numbers = sorted(self._versions.get(spec.name, {}))
        what = "any versions"
        if spec.HasField("version"):
            what = f"version {spec.version.value}"
            numbers = [n for n in numbers if n == spec.version.value]
        if not numbers:
            raise StatusError(
                "NOT_FOUND", f"Could not find {what} of model {spec.name}"
            )
        response = get_model_status_pb2.GetModelStatusResponse()
        for number in numbers:
            item = response.model_version_status.add(version=number)
            item.state = item.AVAILABLE
            item.status.SetInParent()
        return response

    def signatures(self, request) -> get_model_metadata_pb2.SignatureDefMap:
        """The signatures that a GetModelMetadataRequest asks for."""
        version = self.find(request.model_spec)
        request.model_spec.version.value = version.number
        return get_model_metadata_pb2.SignatureDefMap(
            signature_def=version.model.signatures
        )


def _load(config) -> dict[int, Version]:
    folder = Path(config.base_path)
    found = sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal())
    wanted = list(config.model_version_policy.specific.versions) or found[-1:]
    if not wanted:
        raise StatusError("NOT_FOUND", f"No versions of {config.name} in {folder}")
    return {number: Version(number, Model(folder / str(number))) for number in wanted}


# Predict


def predict(models: Models, request, timeout_ms) -> predict_pb2.PredictResponse:
    """Answer a PredictRequest; after so many milliseconds it is cancelled."""
    version = models.find(request.model_spec)
    name = request.model_spec.signature_name or "serving_default"
    if name not in version.model.signatures:
        raise StatusError(
            "FAILED_PRECONDITION", f'Serving signature key "{name}" not found.'
        )
    sent, wanted = set(request.inputs), set(version.model.signatures[name].inputs)
    if sent != wanted:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"input size does not match signature: {len(sent)}!={len(wanted)}. Sent "
            f"extra: {_join(sent - wanted)}. Missing but required: "
            f"{_join(wanted - sent)}.",
        )
    inputs = {key: to_array(proto) for key, proto in request.inputs.items()}
    response = predict_pb2.PredictResponse()
    response.model_spec.signature_name = name
    for key, array in version.model.run(name, inputs, timeout_ms).items():
        dtype = version.model.signatures[name].outputs[key].dtype
        response.outputs[key].CopyFrom(to_proto(array, dtype))
    return response


def _join(names) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def to_array(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """The values of a TensorProto."""
    shape = [dim.size for dim in proto.tensor_shape.dim]
    dtype = DTYPES[proto.dtype]
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values = np.array(list(getattr(proto, _FIELDS[dtype])), dtype)
    if len(values) < np.prod(shape):  # the last stands for the rest
        values = np.append(values, [values[-1]] * (np.prod(shape) - len(values)))
    return values.reshape(shape)


def to_proto(array: np.ndarray, dtype: int) -> tensor_pb2.TensorProto:
    """A TensorProto with the values in its fields, as the server answers."""
    proto = tensor_pb2.TensorProto(dtype=dtype)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, _FIELDS[DTYPES[dtype]]).extend(array.ravel().tolist())
    return proto


# JSON, by the rules of json_tensor.cc


def parse_inputs(body: bytes, models: Models, request) -> bool:
    """Fill a PredictRequest from JSON, and tell whether it came in rows."""
    try:
        document = json.loads(body)
    except ValueError as error:
        raise _invalid(f"JSON Parse error: {error}") from error
    request.model_spec.signature_name = document.get("signature_name", "")
    name = request.model_spec.signature_name or "serving_default"
    signatures = models.find(request.model_spec).model.signatures
    if name not in signatures:
        raise _invalid(f'Serving signature name: "{name}" not found in signature def')
    infos = signatures[name].inputs
    by_row = "instances" in document
    if by_row:
        columns = _columns(document["instances"], sorted(infos))
    elif "inputs" not in document:
        raise _invalid("Missing 'inputs' or 'instances' key")
    else:
        columns = document["inputs"]
        if not isinstance(columns, dict):
            columns = dict.fromkeys(infos, columns)
    for key, info in infos.items():
        if key not in columns:
            raise _invalid(f"Missing named input: {key} in 'inputs' object.")
        values = _convert(columns[key], DTYPES[info.dtype])
        try:
            array = np.array(values, DTYPES[info.dtype])
        except ValueError as error:
            raise _invalid("Encountered list at unexpected size") from error
        request.inputs[key].CopyFrom(to_proto(array, info.dtype))
    return by_row


def _invalid(message: str) -> StatusError:
    return StatusError("INVALID_ARGUMENT", message)


def _columns(rows, names) -> dict[str, list]:
    if not rows:
        raise _invalid("No values in 'instances' array")
    if not isinstance(rows[0], dict):
        if len(names) > 1:
            raise _invalid("instances is a plain list, but expecting list of objects")
        return {names[0]: rows}
    for i, row in enumerate(rows):
        start = f"Failed to process element: {i}"
        for extra in row.keys() - set(names):
            raise _invalid(
                f"{start} key: {extra} of 'instances' list. Error: INVALID_ARGUMENT: "
                f"JSON object: does not have named input: {extra}"
            )
        if sorted(row) != names:
            raise _invalid(
                f"{start} of 'instances' list. JSON object: {json.dumps(row)} keys "
                f"must be equal to: {','.join(names)}"
            )
    return {name: [row[name] for row in rows] for name in names}


def _convert(value, kind: str):
    if isinstance(value, list):
        return [_convert(item, kind) for item in value]
    if kind == "object" and isinstance(value, str):
        return value.encode()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float32" and is_number:
        return value
    if kind == "int32" and is_number and isinstance(value, int) and abs(value) < 2**31:
        return value
    wanted = {"object": "string", "float32": "float"}.get(kind, kind)
    shown = "Number" if is_number else type(value).__name__
    raise _invalid(
        f"JSON Value: {json.dumps(value)} Type: {shown} is not of expected type: "
        f"{wanted}"
    )


def format_outputs(response: predict_pb2.PredictResponse, by_row: bool) -> bytes:
    """The JSON of a PredictResponse: a list of rows, or a list for each output."""
    columns = {
        name: _plain(to_array(proto).tolist())
        for name, proto in response.outputs.items()
    }
    rows = [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]
    document = {"predictions": rows} if by_row else {"outputs": columns}
    return json.dumps(document, ensure_ascii=False).encode()


def _plain(value):
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


# The two interfaces


class RequestCount:
    """`:tensorflow:serving:request_count`, which both interfaces count up."""

    def __init__(self):
        self._counts = Counter()
        self._lock = threading.Lock()

    def add(self, model: str, code: str) -> None:
        """Count a request with its outcome."""
        with self._lock:
            self._counts[model, code] += 1

    def page(self) -> bytes:
        """What Prometheus reads."""
        name = ":tensorflow:serving:request_count"
        with self._lock:
            lines = [
                f'{name}{{model_name="{model}",status="{code}"}} {count}'
                for (model, code), count in sorted(self._counts.items())
            ]
        return "\n".join([f"# TYPE {name} counter", *lines, ""]).encode()


class _Service(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    def __init__(self, models, counts):
        self._models = models
        self._counts = counts

    def _answer(self, context, function, request, *arguments):
        code = "OK"
        try:
            return function(request, *arguments)
        except StatusError as error:
            code = error.code
            return context.abort(getattr(grpc.StatusCode, code), error.message)
        finally:
            self._counts.add(request.model_spec.name, code)

    def Predict(self, request, context):  # noqa: N802
        remaining = context.time_remaining()
        timeout_ms = int(min(max(1, (remaining or 1e9) * 1000), _LONGEST_MS))
        return self._answer(
            context, lambda r: predict(self._models, r, timeout_ms), request
        )

    def GetModelMetadata(self, request, context):  # noqa: N802
        def answer(request):
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            signatures = self._models.signatures(request)
            response.model_spec.CopyFrom(request.model_spec)
            response.metadata["signature_def"].Pack(signatures)
            return response

        return self._answer(context, answer, request)

    def GetModelStatus(self, request, context):  # noqa: N802
        return self._answer(context, self._models.status, request)


def start_grpc(port: int, models: Models, counts: RequestCount):
    """Serve in threads; returns the server, which must be held, and the port."""
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.so_reuseport", 0),  # a port in use is an error
    ]
    server = grpc.server(ThreadPoolExecutor(32), options=options)
    service = _Service(models, counts)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


_HTTP_STATUS = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "NOT_FOUND": 404,
    "UNIMPLEMENTED": 501,
    "DEADLINE_EXCEEDED": 504,
}  # all others: 500
_PATH = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(:predict|/metadata)?"
)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == METRICS_PATH:
            self._send(200, self.server.counts.page(), "text/plain")
        else:
            self._answer()

    def do_POST(self):
        self._answer()

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match = _PATH.fullmatch(self.path)
        name, code = "", "OK"
        try:
            if match is None or (match[4] == ":predict") != (self.command == "POST"):
                raise _invalid(f"Malformed request: {self.command} {self.path}")
            name = unquote(match[1])
            answer = self._call(match, body)
        except StatusError as error:
            answer = json.dumps({"error": error.message}).encode()
            code = error.code
        self.server.counts.add(name, code)
        self._send(_HTTP_STATUS.get(code, 500), answer, "application/json")

    def _call(self, match, body) -> bytes:
        models = self.server.models
        request = {
            ":predict": predict_pb2.PredictRequest,
            "/metadata": get_model_metadata_pb2.GetModelMetadataRequest,
            None: get_model_status_pb2.GetModelStatusRequest,
        }[match[4]]()
        request.model_spec.name = unquote(match[1])
        if match[2]:
            request.model_spec.version.value = int(match[2])
        if match[3]:
            request.model_spec.version_label = unquote(match[3])
        if match[4] == ":predict":
            by_row = parse_inputs(body, models, request)
            return format_outputs(
                predict(models, request, self.server.timeout_ms), by_row
            )
        if match[4] is None:
            return _to_json(models.status(request))
        signatures = json.loads(_to_json(models.signatures(request)))
        spec = json.loads(_to_json(request.model_spec))
        document = {"model_spec": spec, "metadata": {"signature_def": signatures}}
        return json.dumps(document).encode()

    def _send(self, status, answer, content_type):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        """Say nothing of each request."""


def _to_json(message) -> bytes:
    return json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    ).encode()


class _RestServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def start_rest(port: int, models: Models, counts: RequestCount, timeout_ms: int) -> int:
    """Serve in threads; returns the port."""
    server = _RestServer(("127.0.0.1", port), _Handler)
    server.models = models
    server.counts = counts
    server.timeout_ms = timeout_ms
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


# The process


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """The flags, named and written as those of tensorflow_model_server."""
    parser = argparse.ArgumentParser(prog="tests.tf_serving.double", description=BANNER)
    for name, default in (
        ("port", 8500),
        ("rest_api_port", 8501),
        ("rest_api_timeout_in_ms", 30_000),
        ("model_name", "default"),
        ("model_base_path", ""),
        ("model_config_file", ""),
        # read by the server, not here
        ("batching_parameters_file", ""),
        ("monitoring_config_file", ""),
        ("enable_batching", ""),
        ("allow_version_labels_for_unavailable_models", ""),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--xla_cpu_compilation_enabled", action="store_true")
    return parser.parse_args(arguments)


def read_configs(flags: argparse.Namespace) -> list:
    """A `ModelConfig` for each model."""
    server = model_server_config_pb2.ModelServerConfig()
    if flags.model_config_file:
        text_format.Parse(Path(flags.model_config_file).read_text("utf-8"), server)
    else:
        server.model_config_list.config.add(
            name=flags.model_name, base_path=flags.model_base_path
        )
    return list(server.model_config_list.config)


def main() -> None:
    """Run the double until its standard input ends, however its parent does."""
    _log(BANNER)
    flags = parse_flags(sys.argv[1:])
    load_tensorflow(xla=flags.xla_cpu_compilation_enabled)
    try:
        models = Models(read_configs(flags))
    except StatusError as error:
        sys.exit(f"Failed to start server. Error: {error}")
    counts = RequestCount()
    server, port = start_grpc(flags.port, models, counts)
    timeout_ms = flags.rest_api_timeout_in_ms
    rest_port = start_rest(flags.rest_api_port, models, counts, timeout_ms)
    _log(f"gRPC at localhost:{port}")
    _log(f"REST at http://localhost:{rest_port}")
    sys.stdin.buffer.read()
    del server
    os._exit(0)


def _log(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
