"""What REST and gRPC have in common: errors, states and what is shown of a model."""

from dataclasses import dataclass
from typing import Any

_INITIALIZER = "__saved_model_init_op"  # listed with the signatures; not one to call
_DTYPES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64"}


class ServingError(RuntimeError):
    """The server refused a request, or there is none.

    Args:
        code: The name of a gRPC status, such as `"INVALID_ARGUMENT"`. Over REST it is
            told from the HTTP status.
        message: What the server said.

    Attributes:
        code: As above.
        message: As above.
    """

    def __init__(self, code: str, message: str):
        super().__init__(code, message)  # both, so that it can be pickled
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


class UnavailableError(ServingError):
    """An error that may pass, so that the request is sent again."""


@dataclass(frozen=True)
class VersionStatus:
    """The state of a version of the model.

    Attributes:
        version: Its number.
        state: `"START"`, `"LOADING"`, `"AVAILABLE"`, `"UNLOADING"` or `"END"`.
        error: Why it failed to load, else empty.
    """

    version: int
    state: str
    error: str = ""


class Connection:
    """A way to a server: what REST and gRPC do each in their own way.

    They have `predict(signature, inputs, seconds)`, `metadata(seconds)`,
    `status(seconds)` and `close()`. Strings are `str`; each but the last takes the
    seconds that it may take, and raises `UnavailableError`, another `ServingError` or
    `TimeoutError`. Threads may share one.

    Args:
        address: `"host:port"` for gRPC, else `"http://host:port"`, or with https, or
            with a path before `/v1`.
        model: Its name.
        version: Its version, or `None`.
        label: A label of versions, or `None`.
    """

    port, other = "--port=8500", "REST (8501)"

    def __init__(
        self, address: str, model: str, version: int | None, label: str | None
    ):
        self._address = address.rstrip("/")
        self._model = model
        self._version = version
        self._label = label

    def _no_server(self, reason: Any) -> UnavailableError:
        """The error for when nothing answers."""
        return UnavailableError(
            "UNAVAILABLE",
            f"No server answers at {self._address}. Start it with "
            f"`tensorflow_model_server {self.port} --model_name={self._model} "
            "--model_base_path=...`, and see that this isn't its port for "
            f"{self.other}. {reason}",
        )

    def _too_late(self, reason: str) -> TimeoutError:
        """The error for when an answer took too long."""
        return TimeoutError(
            f"No answer from {self._address} in time. Raise `timeout`, or ask for "
            f"fewer tokens or a smaller `batch_size`. {reason}"
        )


def describe_signatures(signatures: dict[str, Any]) -> dict[str, Any]:
    """What `Client.metadata` returns, from a SignatureDefMap's JSON."""
    return {
        name: {
            kind: {
                tensor: _describe_tensor(info)
                for tensor, info in sorted(signature.get(kind, {}).items())
            }
            for kind in ("inputs", "outputs")
        }
        for name, signature in sorted(signatures.items())
        if name != _INITIALIZER
    }


def _describe_tensor(info):
    name, shape = info["dtype"], info.get("tensor_shape", {})
    sizes = [int(dim.get("size", 0)) for dim in shape.get("dim", [])]
    return {
        "dtype": _DTYPES.get(name, name.removeprefix("DT_").lower()),
        "shape": (
            None
            if shape.get("unknown_rank")
            else tuple(None if size < 0 else size for size in sizes)
        ),
    }


def describe_versions(response: dict[str, Any]) -> list[VersionStatus]:
    """What `Client.status` returns, from a GetModelStatusResponse's JSON."""
    return [
        VersionStatus(
            int(item.get("version", 0)),
            item.get("state", "UNKNOWN"),
            item.get("status", {}).get("error_message", ""),
        )
        for item in response["model_version_status"]
    ]
