"""`Service`: a model, its scheduler, and what has come of a request so far."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from keras_gpt.server.errors import ApiError
from keras_gpt.server.metrics import Metrics
from keras_gpt.server.scheduler import Choice, Piece, Scheduler
from keras_gpt.server.settings import Settings


@dataclass(frozen=True)
class Service:
    """What all routes share.

    Attributes:
        lm: A `LanguageModel`.
        settings: The server's.
        scheduler: It has the model.
        metrics: The server's.
        created: When it began, in seconds of Unix's time.
    """

    lm: Any
    settings: Settings
    scheduler: Scheduler
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def names(self) -> list[str]:
        """What requests call the model, and then its adapters."""
        return [self.settings.name, *self.lm.adapters]

    def find_model(self, name: str | None) -> Any:
        """The `LanguageModel` that a request names, by default without adapter.

        Raises:
            ApiError: It isn't served.
        """
        if name is None or name == self.settings.name:
            return self.lm
        if name not in self.lm.adapters:
            raise ApiError(
                404,
                f"There is no model {name!r}. This server has "
                f"{', '.join(map(repr, self.names))}.",
                param="model",
                code="model_not_found",
            )
        return self.lm.with_adapter(name)


async def _find_service(request: Request) -> Service:
    return request.app.state.service


Served = Annotated[Service, Depends(_find_service)]


class Pieces:
    """The pieces of a request's choices, as they come: an asynchronous iterator.

    Args:
        service: The server's.
        choices: What is to be written.

    Attributes:
        choices: The same.

    Raises:
        ApiError: The request isn't taken.
    """

    def __init__(self, service: Service, choices: Sequence[Choice]):
        self.choices = choices
        self._service = service
        self._start = time.perf_counter()
        self._events: asyncio.Queue[Piece | ApiError] = asyncio.Queue()
        self._first: list[Piece | ApiError] = []
        self._not_begun = set(range(len(choices)))
        self._num_going_on = len(choices)
        loop = asyncio.get_running_loop()

        def deliver(event):
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        seconds = service.settings.timeout
        self._job = service.scheduler.submit(choices, deliver, seconds)

    async def begin(self) -> None:
        """Wait for the first piece.

        Raises:
            ApiError: There is none.
        """
        self._first.append(await self._next())

    def close(self) -> None:
        """Let go of what isn't written yet."""
        self._service.scheduler.cancel(self._job)

    def __aiter__(self):
        return self

    async def __anext__(self) -> Piece:
        if self._first:
            return self._first.pop()
        if not self._num_going_on:
            raise StopAsyncIteration
        return await self._next()

    async def _next(self):
        event = await self._events.get()
        if isinstance(event, ApiError):
            raise event
        self._num_going_on -= event.finish_reason is not None
        metrics = self._service.metrics
        if event.index in self._not_begun:
            self._not_begun.remove(event.index)
            metrics.first_token_seconds.observe(time.perf_counter() - self._start)
            num_read = len(self.choices[event.index].prompt_ids)
            metrics.prompt_tokens.inc(num_read)
            metrics.reused_tokens.inc(event.num_reused)
        metrics.new_tokens.inc(len(event.ids))
        return event
