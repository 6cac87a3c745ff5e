"""`ApiError`: what a request is refused with, in OpenAI's form."""

from typing import Any

from pydantic import BaseModel
from starlette.exceptions import HTTPException

CLOSED = 499  # the status, in the log, of an answer whose client went away
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Problem(BaseModel):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An answer that is an error."""

    error: Problem


class ApiError(HTTPException):
    """An answer that is an error.

    Args:
        status: Of HTTP.
        message: What is wrong, and the way out.
        param: The field of the request that it is about.
        code: A word for programs.
        headers: Others of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        headers = dict(headers or {})
        if status >= 500 and status != 503:  # it would fail again
            headers["X-Should-Retry"] = "false"  # which the `openai` package obeys
        super().__init__(status, message, headers)
        self.param = param
        self.code = code


def error_body(error: HTTPException, path: str = "") -> dict[str, Any]:
    """What is answered, in OpenAI's form or in that of TensorFlow Serving.

    Args:
        error: An `ApiError`, or one of the framework's.
        path: What the request was sent to.
    """
    # what was received may hold half a surrogate pair, which UTF-8 can't write
    message = error.detail.encode("utf-8", "replace").decode()
    if path.endswith((":predict", "/metadata")):
        return {"error": message}
    status = error.status_code
    kind = "server_error" if status >= 500 else "invalid_request_error"
    problem = Problem(
        message=message,
        type=_TYPES.get(status, kind),
        param=getattr(error, "param", None),
        code=getattr(error, "code", None),
    )
    return ErrorBody(error=problem).model_dump()
