"""`Scheduler`: one thread that owns the model, in whose steps all requests share."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from keras_gpt.generation import Slots, TextAssembler
from keras_gpt.generation.outside import is_outside
from keras_gpt.generation.turns import Turns
from keras_gpt.server.errors import ApiError

_TOKENS_BETWEEN_LOOKS = 4  # decoded before others are let in and text goes out
_WARM_UP_LENGTHS = 1, 50, 200  # of prompts: each is read by another program

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A text to be written.

    Attributes:
        prompt_ids: What it continues.
        controls: As of `Slots.add`.
        stop: Strings that end it.
    """

    prompt_ids: list[int]
    controls: dict[str, Any]
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """What a choice has grown by.

    Attributes:
        index: Which of the request's choices.
        text: What is certain of its text.
        ids: The new token ids.
        log_probs: Of each of them, in nats.
        alternatives: In place of each of them, as of `SlotRow`, if they are asked for.
        finish_reason: `"stop"`, `"length"`, or `None` while it goes on.
        num_reused: Tokens of the prompt that needn't be read again.
    """

    index: int
    text: str
    ids: list[int]
    log_probs: list[float]
    alternatives: list[list[tuple[int, float]]]
    finish_reason: str | None
    num_reused: int


class Job:
    """A request's choices.

    Args:
        deliver: Called from the scheduler's thread with each `Piece`, or once with the
            `ApiError` that ends the request.
        deadline: When it is given up, by `time.monotonic`.
    """

    def __init__(self, deliver: Callable[[Piece | ApiError], None], deadline: float):
        self.deliver = deliver
        self.deadline = deadline
        self.is_over = False  # nobody waits for more

    def fail(self, error: ApiError) -> None:
        """End the request with an error, unless it has ended."""
        if not self.is_over:
            self.is_over = True
            self.deliver(error)


class _Row:
    """A choice on its way."""

    def __init__(self, job, index, choice, tokenizer):
        self.job = job
        self.index = index
        self.choice = choice
        self.text = TextAssembler(tokenizer, choice.stop)
        self.slot = None
        self.num_taken = 0

    def take(self):
        """The piece that came since the last, token by token up to a stop string."""
        slot, start = self.slot, self.num_taken
        text = ""
        for token_id in slot.ids[start:]:
            text += self.text.add([token_id])
            self.num_taken += 1
            if self.text.stopped:
                break
        reason = "stop" if self.text.stopped else slot.finish_reason
        if reason is not None:
            text += self.text.finish()
        new = slice(start, self.num_taken)
        return Piece(
            self.index,
            text,
            slot.ids[new],
            slot.log_probs[new],
            slot.alternatives[new],
            reason,
            slot.num_reused,
        )


class Scheduler:
    """Answers requests with one model, several at the same time.

    Args:
        lm: A `LanguageModel`, which nobody else may use meanwhile.
        num_slots: Choices that are written at the same time.
        max_waiting: Choices that wait for a slot.

    Attributes:
        is_ready: Whether the model was warmed up.
        is_stopping: Whether new requests are refused.
        error: What ended the thread, if something did.
    """

    def __init__(self, lm, *, num_slots: int = 8, max_waiting: int = 64):
        self.is_ready = False
        self.is_stopping = False
        self.error: BaseException | None = None
        self._lm = lm
        kind = Turns if is_outside(lm.model) else Slots
        self._slots = kind(lm.model, num_slots)
        self._num_slots = num_slots
        self._most = num_slots + max_waiting
        self._changed = threading.Condition()
        self._waiting: deque[_Row] = deque()
        self._running: list[_Row] = []
        self._calls: deque[tuple[Future, Callable]] = deque()
        self._thread = threading.Thread(
            target=self._run, name="keras_gpt scheduler", daemon=True
        )

    @property
    def num_waiting(self) -> int:
        """Choices that wait for a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Choices that are being written."""
        return len(self._running)

    def start(self) -> None:
        """Warm the model up, then answer."""
        self._thread.start()

    def submit(
        self, choices: Sequence[Choice], deliver: Callable, seconds: float
    ) -> Job:
        """Ask for texts. Any thread may.

        Args:
            choices: What to write.
            deliver: As of `Job`.
            seconds: How long it may take.

        Returns:
            The job, which `cancel` takes.

        Raises:
            ApiError: The queue is full, or the server stops or has failed.
        """
        job = Job(deliver, time.monotonic() + seconds)
        rows = [
            _Row(job, index, choice, self._lm.tokenizer)
            for index, choice in enumerate(choices)
        ]
        with self._changed:
            self._check_room(len(rows))
            self._waiting.extend(rows)
            self._changed.notify()
        return job

    def call(self, function: Callable[[], Any]) -> Future:
        """Have something computed between two steps. Any thread may ask for it.

        Args:
            function: Called from the thread that has the model.

        Returns:
            What becomes of it; one that is cancelled in time isn't called.

        Raises:
            ApiError: As of `submit`.
        """
        future = Future()
        with self._changed:
            self._check_room(1)
            self._calls.append((future, function))
            self._changed.notify()
        return future

    def _check_room(self, count):
        """Refuse so many more choices or calls where there is no room.

        Raises:
            ApiError: There is none.
        """
        if self.error is not None:
            raise _failed()
        if self.is_stopping:
            raise ApiError(503, "The server is stopping.", code="stopping")
        waiting = len(self._waiting) + len(self._running) + len(self._calls)
        if waiting + count > self._most:
            raise ApiError(
                429,
                "Too many requests wait for an answer. Try again soon.",
                code="queue_full",
                headers={"Retry-After": "1"},
            )

    def cancel(self, job: Job) -> None:
        """Let go of a job that nobody waits for; its slots are free at once."""
        job.is_over = True

    def stop(self, seconds: float) -> None:
        """Take no more requests, and end when those that were taken are answered.

        Args:
            seconds: How long they may take from now on.
        """
        with self._changed:
            self.is_stopping = True
            for row in (*self._waiting, *self._running):
                row.job.deadline = min(row.job.deadline, time.monotonic() + seconds)
            self._changed.notify()

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the thread's end, after `stop`; returns whether it came."""
        if self._thread.ident is not None:  # it was started
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self):
        try:
            self._warm_up()
            self.is_ready = True
            logger.info("ready")
            while self._let_in():
                self._answer_call()
                if not self._running:
                    continue
                # a first token is waited for more than the others
                is_new = not all(row.num_taken for row in self._running)
                self._slots.advance(1 if is_new else _TOKENS_BETWEEN_LOOKS)
                self._give_out()
        except Exception as error:
            logger.exception("The scheduler failed: all requests are refused.")
            with self._changed:
                self.error = error
                for row in (*self._waiting, *self._running):
                    row.job.fail(_failed())
                for future, _ in self._calls:
                    if future.set_running_or_notify_cancel():
                        future.set_exception(_failed())

    def _answer_call(self):
        """Compute the next of what `call` was asked for, if anything."""
        if not self._calls:
            return
        future, function = self._calls.popleft()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 (the caller gets it)
                future.set_exception(error)

    def _warm_up(self):
        """Write some tokens, alone and together, so that programs are compiled."""
        config = self._lm.model.config

        def add(count, length):
            prompt = [size % config.vocab_size] * min(length, config.context_length)
            controls = {"max_new_tokens": 2, "temperature": 0}
            return [self._slots.add(prompt, **controls) for _ in range(count)]

        for size in sorted({1, min(4, self._num_slots), self._num_slots}):
            for length in _WARM_UP_LENGTHS:
                # all at once; but for short ones also one before or after the others
                for num_late in {0, 1, size - 1} if length == 1 else {0}:
                    rows = add(size - num_late, length)
                    self._slots.advance(1)
                    rows += add(num_late, length)
                    while any(row.finish_reason is None for row in rows):
                        self._slots.advance(_TOKENS_BETWEEN_LOOKS)

    def _let_in(self):
        """Fill free slots from the queue; returns `False` when all is done."""
        with self._changed:
            self._drop()
            while not (self._waiting or self._running or self._calls):
                if self.is_stopping:
                    return False
                self._changed.wait()
                self._drop()
            while self._waiting and self._slots.num_free:
                row = self._waiting.popleft()
                choice = row.choice
                try:
                    row.slot = self._slots.add(choice.prompt_ids, **choice.controls)
                except ValueError as error:
                    row.job.fail(ApiError(400, str(error)))
                else:
                    self._running.append(row)
        return True

    def _drop(self):
        """Let go of what nobody waits for, or what took too long."""
        now = time.monotonic()
        for row in (*self._waiting, *self._running):
            if row.job.deadline < now:
                row.job.fail(too_late(self.is_stopping))
        self._waiting = deque(row for row in self._waiting if not row.job.is_over)
        for row in self._running:
            if row.job.is_over:
                self._slots.stop(row.slot)
        self._running = [row for row in self._running if not row.job.is_over]

    def _give_out(self):
        """Hand the new text over, and let go of what has ended."""
        going_on = []
        for row in self._running:
            piece = row.take()
            form = row.slot.form
            if form is not None and form.problem:
                row.job.fail(ApiError(400, f"There is no such answer: {form.problem}."))
            if not row.job.is_over and (piece.ids or piece.finish_reason):
                row.job.deliver(piece)
            if piece.finish_reason is None:
                going_on.append(row)
            else:
                self._slots.stop(row.slot)
        with self._changed:
            self._running = going_on


def _failed():
    return ApiError(500, "The model failed; the server's log says why.", code="failed")


def too_late(is_stopping: bool = False) -> ApiError:
    """What a request is refused with that took too long."""
    if is_stopping:
        return ApiError(503, "The server is stopping.", code="stopping")
    return ApiError(504, "The answer took too long.", code="timeout")
