"""`Gate`: what every request passes through, on its way in and out.

References:
    - [ASGI](https://asgi.readthedocs.io/en/latest/specs/www.html)
"""

import hmac
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from keras_gpt.server.errors import CLOSED, ApiError, error_body
from keras_gpt.server.metrics import Metrics
from keras_gpt.server.pages import FILES
from keras_gpt.server.settings import Settings

OPEN_PATHS = ("/health", "/ready", *FILES)  # what needs no key
_QUIET = ("/health", "/ready", "/metrics")
_FIGURES = ("id", "prompt_tokens", "cached_tokens", "completion_tokens")
_PORT = re.compile(r":\d*$", re.ASCII)
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)

logger = logging.getLogger(__name__)


class Gate:
    """Lets in who may come in, and notes each request in the log and the metrics.

    Args:
        app: What it stands before.
        settings: The server's.
        metrics: The server's.
    """

    def __init__(self, app, settings: Settings, metrics: Metrics):
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope, receive, send):
        """Answer a request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        start = time.perf_counter()
        status = None

        async def send_with_id(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        # what a route wants to have in the log
        state = scope.setdefault("state", {})
        state["log"] = {}
        path = scope["path"]
        try:
            self._check(headers, path)
            limited = _limit(receive, self._settings.max_body)
            await self._app(scope, limited, send_with_id)
        except ApiError as error:
            await _refuse(error, path)(scope, receive, send_with_id)
        except ClientDisconnect:  # amid its request
            pass
        except Exception:
            logger.exception("A request failed.", extra={"request_id": request_id})
            if status is not None:  # too late for an answer
                raise
            error = ApiError(500, "The server failed; its log says why.")
            await _refuse(error, path)(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - start
            self._note(scope, status or CLOSED, seconds, request_id)

    def _note(self, scope, status, seconds, request_id):
        """Count a request, and write it into the log."""
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        fields = {
            "request_id": request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
        }
        answer = scope["state"]["log"].get("answer")
        if answer is not None:
            fields |= {name: getattr(answer, name) for name in _FIGURES}
        # what asks every few seconds would hide the rest
        is_quiet = route in _QUIET and status in (200, 503)
        level = logging.DEBUG if is_quiet else logging.INFO
        logger.log(level, "request", extra=fields)

    def _check(self, headers, path):
        """Refuse who may not come in.

        Raises:
            ApiError: It knows the server by another name, is another site's page, has
                no key, or brings too much.
        """
        # so that a name of another site that leads here doesn't let its pages in
        host = _PORT.sub("", headers.get("host", "")).lower()
        if not any(_is_named(host, name) for name in self._settings.hosts):
            raise ApiError(
                400,
                f"This server isn't known as {host!r:.80}. Start it with "
                "`--allowed-host`, if it should be.",
                code="host_not_allowed",
            )
        # a browser says so where a page of another site sends a request
        is_other = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if is_other and path != "/":  # to which a link may lead
            raise ApiError(403, "Pages of other sites may not call this server.")
        key = self._settings.api_key
        if key is not None and path not in OPEN_PATHS:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(token.strip().encode(), key.encode())
            if scheme.lower() != "bearer" or not is_right:
                raise ApiError(
                    401,
                    "Send the server's key as the header `Authorization: Bearer KEY`.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._settings.max_body:
            raise _too_large(self._settings.max_body)


def _is_named(host, name):
    """Whether a name, which may begin with `*`, is that of a host."""
    name = name.lower()
    return host == name or (name[:1] == "*" and host.endswith(name[1:]))


def _limit(receive, most):
    """A `receive` that gives at most so many bytes."""
    size = 0

    async def limited():
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise _too_large(most)
        return message

    return limited


def _too_large(most):
    return ApiError(
        413,
        f"A request may have at most {most} bytes.",
        code="request_too_large",
        headers={"Connection": "close"},  # the rest isn't read
    )


def _refuse(error, path):
    return JSONResponse(error_body(error, path), error.status_code, error.headers)
