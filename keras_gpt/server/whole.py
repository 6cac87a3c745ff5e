"""Signatures whose answers come whole: scores, token ids, summaries, translations."""

import queue
import time

from keras_gpt import tasks
from keras_gpt.generation.scoring import score
from keras_gpt.language_model.completion import encode_prompts
from keras_gpt.server.errors import CLOSED, ApiError
from keras_gpt.server.prompts import make_choice
from keras_gpt.server.scheduler import too_late
from keras_gpt.server.service import Service

WHOLE = {  # the inputs that a request must have
    "score": ("text",),
    "tokenize": ("text",),
    "summarize": ("text",),
    "translate": ("text", "source", "target"),
}
NEW_TOKENS = 64  # as `LanguageModel.export` has it


class Whole:
    """An answer that a thread puts together, of what the scheduler writes for it.

    To `keras_gpt.tasks` it is a language model whose texts are written among others'.

    Args:
        lm: The `LanguageModel` that is asked.
        service: The server's.
    """

    def __init__(self, lm, service: Service):
        self._lm = lm
        self._scheduler = service.scheduler
        self._deadline = time.monotonic() + service.settings.timeout
        self._events = queue.SimpleQueue()
        self._jobs = []
        self._is_closed = False

    def __getattr__(self, name):
        """What the language model has besides texts."""
        return getattr(self._lm, name)

    def answer(self, signature: str, columns: dict[str, list]) -> dict[str, list]:
        """The outputs of a signature of `WHOLE`, a value for each row.

        Args:
            signature: Its name.
            columns: Its inputs, strings.

        Raises:
            ApiError: An input is wrong, or it took too long.
        """
        texts = columns["text"]
        try:
            if signature == "tokenize":
                return _describe_ids(self._lm.tokenizer.encode_batch(texts))
            if signature == "score":
                return self._score(texts)
            config = self._lm.model.config
            most = min(NEW_TOKENS, config.context_length // 2)
            if signature == "summarize":
                return {"text": tasks.summarize(self, texts, most)}
            pairs = list(zip(columns["source"], columns["target"], strict=True))
            found = [""] * len(texts)
            for pair in dict.fromkeys(pairs):  # each once
                rows = [i for i, other in enumerate(pairs) if other == pair]
                languages = dict(zip(("source", "target"), pair, strict=True))
                some = tasks.translate(
                    self, [texts[i] for i in rows], most, **languages
                )
                for i, text in zip(rows, some, strict=True):
                    found[i] = text
            return {"text": found}
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        except TimeoutError as error:
            raise too_late() from error

    def generate_from_ids(self, prompts, max_new_tokens, *, seed, **controls):
        """As of `LanguageModel`, written among others' texts."""
        choices = [
            make_choice(
                self._lm, ids, {"max_new_tokens": max_new_tokens, "seed": s, **controls}
            )
            for ids, s in zip(prompts, seed, strict=True)
        ]
        seconds = self._deadline - time.monotonic()
        self._jobs.append(self._scheduler.submit(choices, self._events.put, seconds))
        texts, num_left = [""] * len(choices), len(choices)
        while num_left and not self._is_closed:
            piece = self._events.get()
            if isinstance(piece, ApiError):
                raise piece
            texts[piece.index] += piece.text
            num_left -= piece.finish_reason is not None
        return texts

    def close(self) -> None:
        """Let go of what isn't written yet."""
        self._is_closed = True
        for job in self._jobs:
            self._scheduler.cancel(job)
        self._events.put(ApiError(CLOSED, "The client went away."))

    def _score(self, texts):
        rows = encode_prompts(self._lm.tokenizer, texts)
        log_probs = []
        for ids in rows:  # one by one, so that others go on between them
            call = self._scheduler.call(
                lambda ids=ids: score(self._lm.model, [ids], adapter=self._lm.adapter)
            )
            log_probs += call.result(max(0.0, self._deadline - time.monotonic()))
        log_probs = [row.tolist() for row in log_probs]
        return {"log_probs": _pad(log_probs, 0.0), **_describe_ids(rows)}


def _describe_ids(rows):
    return {"token_ids": _pad(rows, -1), "num_tokens": [len(row) for row in rows]}


def _pad(rows, value):
    longest = max(map(len, rows))
    return [row + [value] * (longest - len(row)) for row in rows]
