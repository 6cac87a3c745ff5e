"""`make_app`: the server as an ASGI application."""

import asyncio
import contextlib
import dataclasses
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from keras_gpt.server import inspection, pages
from keras_gpt.server.answers import Answer
from keras_gpt.server.errors import CLOSED, ApiError, ErrorBody, error_body
from keras_gpt.server.gate import Gate
from keras_gpt.server.metrics import Metrics
from keras_gpt.server.predict import (
    PredictRequest,
    describe_signatures,
    find_whole,
    make_predictions,
    write_outputs,
    write_predictions,
)
from keras_gpt.server.prompts import make_choices
from keras_gpt.server.requests import ChatRequest, CompletionRequest
from keras_gpt.server.scheduler import Scheduler
from keras_gpt.server.service import Pieces, Served, Service
from keras_gpt.server.settings import Settings
from keras_gpt.server.whole import Whole

router = APIRouter()


def make_app(lm, settings: Settings) -> FastAPI:
    """The server as an ASGI application.

    Args:
        lm: A `LanguageModel`, which nobody else may use meanwhile. Its adapters are
            models by their own names.
        settings: What it lets its clients ask for.

    Raises:
        ValueError: An adapter's name is the model's, or has a slash or a colon.

    Example:

    >>> import keras_gpt
    >>> from keras_gpt.server.app import make_app
    >>> tokenizer = keras_gpt.CharacterTokenizer.train(["hello world"])
    >>> config = keras_gpt.GPTConfig(vocab_size=8, context_length=16, num_heads=2,
    ...                              embedding_dimension=32, num_layers=1)
    >>> lm = keras_gpt.LanguageModel(keras_gpt.GPT(config), tokenizer)
    >>> app = make_app(lm, keras_gpt.server.Settings(name="greeter"))
    >>> "/v1/completions" in app.openapi()["paths"]
    True
    """
    for name in lm.adapters:
        dataclasses.replace(settings, name=name)  # which checks it
        if name == settings.name:
            raise ValueError(
                "An adapter must have another name than the model that is served. "
                f"Received: {name!r} for both."
            )
    scheduler = Scheduler(
        lm, num_slots=settings.num_slots, max_waiting=settings.max_waiting
    )
    metrics = Metrics(scheduler, settings.num_slots)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        scheduler.start()
        yield
        scheduler.stop(settings.grace)
        await asyncio.to_thread(scheduler.join)

    app = FastAPI(
        title=f"{settings.name}, served by keras_gpt",
        lifespan=lifespan,
        docs_url=None,  # its page takes scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses={"default": {"model": ErrorBody, "description": "An error."}},
        exception_handlers={
            HTTPException: _answer_error,
            RequestValidationError: _answer_invalid,
        },
    )
    app.state.service = Service(lm, settings, scheduler, metrics)
    for part in (router, inspection.router, pages.router):
        app.include_router(part)
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    return app


@router.get("/health")
async def health(service: Served):
    """Whether the server works."""
    if service.scheduler.error is not None:
        raise ApiError(500, "The model failed; the server's log says why.")
    return {"status": "ok"}


@router.get("/ready")
async def ready(service: Served):
    """Whether requests are answered at once."""
    scheduler = service.scheduler
    if not scheduler.is_ready or scheduler.is_stopping or scheduler.error is not None:
        raise ApiError(503, "The server isn't ready.", code="not_ready")
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
async def metrics(service: Served):
    """What Prometheus reads."""
    content_type = "text/plain; version=0.0.4; charset=utf-8"
    return Response(service.metrics.text(), media_type=content_type)


@router.get("/v1/models")
async def models(service: Served):
    """What is served."""
    return {"object": "list", "data": [_describe(service, n) for n in service.names]}


@router.get("/v1/models/{name}")
@router.get("/v1/models/{name}/versions/1")
async def model(name: str, service: Served):
    """A model, as OpenAI's interface and TensorFlow Serving's have it."""
    service.find_model(name)
    state = "AVAILABLE" if service.scheduler.is_ready else "LOADING"
    status = {"error_code": "OK", "error_message": ""}
    versions = [{"version": "1", "state": state, "status": status}]
    return {**_describe(service, name), "model_version_status": versions}


_STREAMED = {200: {"content": {"text/event-stream": {}}}}


@router.post("/v1/completions", responses=_STREAMED)
async def complete(asked: CompletionRequest, request: Request, service: Served):
    """Continue texts."""
    return await _answer(asked, request, service)


@router.post("/v1/chat/completions", responses=_STREAMED)
async def chat(asked: ChatRequest, request: Request, service: Served):
    """Answer the last message of a conversation."""
    return await _answer(asked, request, service)


# the body is read by hand: clients of TensorFlow Serving don't say that it is JSON
_PREDICT = {
    "openapi_extra": {"requestBody": {"content": {"application/json": {"schema": {}}}}},
    "responses": {"default": {"description": "An error of TensorFlow Serving."}},
}


@router.get("/v1/models/{name}/metadata", responses=_PREDICT["responses"])
@router.get("/v1/models/{name}/versions/1/metadata", responses=_PREDICT["responses"])
async def metadata(name: str, service: Served):
    """Describe the signatures, as TensorFlow Serving does."""
    signatures = describe_signatures(service.find_model(name))
    return {
        "model_spec": {"name": name, "signature_name": "", "version": "1"},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


@router.post("/v1/models/{name}:predict", **_PREDICT)
@router.post("/v1/models/{name}/versions/1:predict", **_PREDICT)
async def predict(name: str, request: Request, service: Served):
    """Call a signature, as of TensorFlow Serving."""
    lm = service.find_model(name)
    asked = PredictRequest.read(await request.body())
    found = find_whole(lm, service.settings, asked)
    if found is not None:
        whole = Whole(lm, service)
        answered = run_in_threadpool(whole.answer, *found)
        outputs = await _until_gone(request, whole, answered)
        return JSONResponse(write_outputs(asked, outputs))
    choices = await run_in_threadpool(make_predictions, lm, service.settings, asked)
    pieces = Pieces(service, choices)
    came = [[] for _ in choices]

    async def collect():
        async for piece in pieces:
            came[piece.index].append(piece)
        return write_predictions(asked, came)

    return JSONResponse(await _until_gone(request, pieces, collect()))


async def _answer(asked, request, service):
    """Answer in OpenAI's form, whole or as a stream."""
    lm = service.find_model(asked.model)
    choices = await run_in_threadpool(make_choices, lm, service.settings, asked)
    answer = Answer(lm, asked.model or service.settings.name, asked, choices)
    pieces = Pieces(service, choices)
    request.state.log["answer"] = answer
    if not asked.stream:
        return JSONResponse(await _until_gone(request, pieces, answer.whole(pieces)))
    # what goes wrong before the first piece still has a status of its own
    await _until_gone(request, pieces, pieces.begin())
    return _Events(answer.events(pieces), pieces)


class _Events(StreamingResponse):
    """Server-sent events, until the end or until the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, events, pieces: Pieces):
        super().__init__(events, headers={"Cache-Control": "no-cache"})
        self._pieces = pieces

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pieces.close()


async def _until_gone(request: Request, pieces: Pieces | Whole, awaited) -> Any:
    """Await something, but no longer than the client does."""
    task = asyncio.ensure_future(awaited)
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(CLOSED, "The client went away.")
    except BaseException:
        pieces.close()
        raise
    finally:
        task.cancel()
        gone.cancel()


async def _wait_until_gone(request):
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _describe(service, name):
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "keras_gpt",
    }


async def _answer_error(request: Request, error: HTTPException) -> JSONResponse:
    body = error_body(error, request.url.path)
    return JSONResponse(body, error.status_code, error.headers)


async def _answer_invalid(
    request: Request, error: RequestValidationError
) -> JSONResponse:
    """A body that isn't what it should be, in a line."""
    first, *others = error.errors()
    field = first.get("ctx", {}).get("field") or _name_field(first["loc"])
    message = first["msg"]
    if first["type"] == "extra_forbidden":
        message = f"`{field}` isn't known to this server."
    elif first["type"] not in ("unsupported", "goes_with"):
        # a field of several types has a problem with each
        alike = [p["msg"] for p in others if _name_field(p["loc"]) == field]
        message = f"`{field or 'body'}`: {'; or: '.join([message, *alike])}."
    return await _answer_error(request, ApiError(400, message, param=field))


def _name_field(place):
    """A field of the body, as in `messages.0.role`; `None` for the body itself."""
    _, *parts = place
    if not parts or isinstance(parts[0], int):  # the place of what isn't JSON
        return None
    # after it come the names of types that it might have
    return ".".join(str(p) for p in parts if isinstance(p, int) or _is_name(p))


def _is_name(part):
    return part.isidentifier() and part != "str"
