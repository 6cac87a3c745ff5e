"""The REST interface of the serving double: paths, statuses and metrics."""

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from google.protobuf import json_format

from tests.serving.capi import StatusError
from tests.serving.double_grpc import get_metadata, get_status, unpack_signatures
from tests.serving.double_json import format_response, parse_request
from tests.serving.double_predict import predict, to_array
from tests.serving.protos import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

_HTTP_STATUS = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "UNAUTHENTICATED": 401,
}  # all others: 500
_MODEL = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"
_PREDICT = re.compile(_MODEL + ":(classify|regress|predict)", re.IGNORECASE)
_STATUS = re.compile(_MODEL + "(?:/(metadata))?", re.IGNORECASE)


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
        lines = [f"# TYPE {name} counter"]
        with self._lock:
            lines += [
                f'{name}{{model_name="{model}",status="{code}"}} {count}'
                for (model, code), count in sorted(self._counts.items())
            ]
        return ("\n".join(lines) + "\n").encode()


class _Server(ThreadingHTTPServer):
    """Holds what its handlers need."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port, models, timeout_ms, metrics_path, request_count):
        super().__init__(("127.0.0.1", port), _Handler)
        self.models = models
        self.timeout_ms = timeout_ms
        self.metrics_path = metrics_path
        self.request_count = request_count


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.server.metrics_path and self.path == self.server.metrics_path:
            self._send(200, self.server.request_count.page(), "text/plain")
        else:
            self._answer("GET")

    def do_POST(self):
        self._answer("POST")

    def _answer(self, method):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if not path.lower().startswith("/v1/"):
            self._send(404, b"", "text/plain")
            return
        match = (_PREDICT if method == "POST" else _STATUS).fullmatch(path)
        code = "OK"
        try:
            if match is None:
                raise StatusError(
                    "INVALID_ARGUMENT", f"Malformed request: {method} {path}"
                )
            models = self.server.models
            if method == "POST":
                answer = _predict(models, match, body, self.server.timeout_ms)
            else:
                answer = _describe(models, match)
        except StatusError as error:
            answer = json.dumps({"error": error.message}, indent=4).encode()
            code = error.code
        self.server.request_count.add(unquote(match[1]) if match else "", code)
        status = 200 if code == "OK" else _HTTP_STATUS.get(code, 500)
        self._send(status, answer, "application/json")

    def _send(self, status, answer, content_type):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        """Say nothing of each request."""


def start_rest(port, models, *, timeout_ms, metrics_path, request_count) -> int:
    """Serve in threads of their own.

    Args:
        port: 0 for a free one.
        models: `Models`.
        timeout_ms: Longest run of a request.
        metrics_path: Where the metrics are, or `None`.
        request_count: `RequestCount`.

    Returns:
        The port.
    """
    server = _Server(port, models, timeout_ms, metrics_path, request_count)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def _fill_spec(spec, match) -> None:
    spec.name = unquote(match[1])
    if match[2]:
        spec.version.value = int(match[2])
    if match[3]:
        spec.version_label = unquote(match[3])


def _predict(models, match, body: bytes, timeout_ms: int) -> bytes:
    if match[4].lower() != "predict":
        raise StatusError("UNIMPLEMENTED", f"The double can't {match[4]}.")
    request = predict_pb2.PredictRequest()
    _fill_spec(request.model_spec, match)

    def find_signature(name):
        with models.use(request.model_spec) as version:
            if name not in version.model.signatures:
                raise StatusError(
                    "INVALID_ARGUMENT",
                    f'Serving signature name: "{name}" not found in signature def',
                )
            return version.model.signatures[name]

    row_or_column = parse_request(body, find_signature, request)
    response = predict(models, request, timeout_ms)
    arrays = {name: to_array(proto) for name, proto in response.outputs.items()}
    return format_response(arrays, row_or_column)


def _describe(models, match) -> bytes:
    options = {"always_print_fields_with_no_presence": True}
    if match[4] is None:
        request = get_model_status_pb2.GetModelStatusRequest()
        _fill_spec(request.model_spec, match)
        response = get_status(models, request)
        return json_format.MessageToJson(response, **options).encode()
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        metadata_field=["signature_def"]
    )
    _fill_spec(request.model_spec, match)
    response = get_metadata(models, request)
    parts = [
        json_format.MessageToDict(part, preserving_proto_field_name=True, **options)
        for part in (response.model_spec, unpack_signatures(response))
    ]
    document = {"model_spec": parts[0], "metadata": {"signature_def": parts[1]}}
    return json.dumps(document, indent=1).encode()
