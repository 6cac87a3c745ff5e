"""A connection to TensorFlow Serving over REST."""

import json
from typing import Any
from urllib.parse import quote

import numpy as np

from keras_gpt.tf_serving.connection import (
    Connection,
    ServingError,
    UnavailableError,
    VersionStatus,
    describe_signatures,
    describe_versions,
)

_CODES = {  # of the HTTP statuses that the server answers with
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_PASSING = (429, 502, 503, 504)
_CONNECTIONS = 32  # kept open for threads that call at once


class RestConnection(Connection):
    """A `Connection` over REST."""

    port, other = "--rest_api_port=8501", "gRPC (8500)"

    def __init__(self, *arguments):
        import requests

        super().__init__(*arguments)
        self._errors = requests.exceptions
        self._path = f"/v1/models/{quote(self._model, safe='')}"
        if self._version is not None:
            self._path += f"/versions/{self._version}"
        elif self._label is not None:
            self._path += f"/labels/{quote(self._label, safe='')}"
        self._session = requests.Session()
        # The client itself tries again, over gRPC too: none is done here.
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def predict(
        self, signature: str, inputs: dict[str, np.ndarray], seconds: float
    ) -> dict[str, list]:
        """See `Connection`."""
        columns = {name: array.tolist() for name, array in inputs.items()}
        body = {"signature_name": signature, "inputs": columns}
        answer = self._send("POST", ":predict", seconds, body)
        outputs = answer.get("outputs")
        if not isinstance(outputs, dict):
            raise ServingError(
                "INTERNAL", f"The outputs of {signature!r} have no names: {outputs!r}."
            )
        return outputs

    def metadata(self, seconds: float) -> dict[str, Any]:
        """See `Connection`."""
        answer = self._send("GET", "/metadata", seconds)
        return describe_signatures(answer["metadata"]["signature_def"]["signature_def"])

    def status(self, seconds: float) -> list[VersionStatus]:
        """See `Connection`."""
        return describe_versions(self._send("GET", "", seconds))

    def close(self) -> None:
        """See `Connection`."""
        self._session.close()

    def _send(
        self, method: str, suffix: str, seconds: float, body: dict | None = None
    ) -> dict:
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        try:
            response = self._session.request(
                method, self._address + self._path + suffix, data=data, timeout=seconds
            )
        except self._errors.Timeout as error:
            raise self._too_late(f"It had {seconds:.3g} seconds.") from error
        except self._errors.SSLError as error:
            raise ServingError("UNAUTHENTICATED", str(error)) from error
        except (
            self._errors.ConnectionError,
            self._errors.ChunkedEncodingError,
        ) as error:
            raise self._no_server(error) from error
        text = response.content.decode("utf-8", "replace")
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if response.ok and isinstance(answer, dict):
            return answer
        status = response.status_code
        if isinstance(answer, dict) and "error" in answer:
            message = str(answer["error"])
            if status == 504:
                # The server gave up by itself, and would again.
                raise self._too_late(
                    f"The server said: {message} Its --rest_api_timeout_in_ms is 30000 "
                    "unless set."
                )
        else:
            message = (
                f"{self._address} answers with HTTP status {status} and no JSON as "
                f"TensorFlow Serving's: {text[:200]!r}."
            )
        kind = UnavailableError if status in _PASSING else ServingError
        raise kind(_CODES.get(status, "UNKNOWN"), message)
