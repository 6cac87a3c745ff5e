"""Answers in the words of OpenAI's interface, whole or as server-sent events."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from keras_gpt.server.errors import ApiError, error_body
from keras_gpt.server.requests import ChatRequest, CompletionRequest
from keras_gpt.server.scheduler import Choice, Piece
from keras_gpt.server.tools import find_calls, split_calls


class Answer:
    """What becomes of a request.

    Args:
        lm: A `LanguageModel`.
        name: What requests call it.
        request: The request.
        choices: What it asks for.

    Attributes:
        id: Of the answer.
        prompt_tokens: How many tokens were read, those of each prompt once.
        completion_tokens: How many were written.
    """

    def __init__(
        self,
        lm,
        name: str,
        request: CompletionRequest | ChatRequest,
        choices: Sequence[Choice],
    ):
        self._tokenizer = lm.tokenizer
        self._request = request
        self._choices = choices
        self._is_chat = isinstance(request, ChatRequest)
        self._offsets = [0] * len(choices)
        self._tools = []  # the names of functions that may be called
        self._held = [""] * len(choices)  # text that may become calls
        prefix, kind = "cmpl", "text_completion"
        if self._is_chat:
            prefix, kind = "chatcmpl", "chat.completion"
            self._tools = [tool.function.name for tool in request.callable_tools]
            if request.stream:
                kind += ".chunk"
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self._head = {
            "id": self.id,
            "object": kind,
            "created": int(time.time()),
            "model": name,
        }
        prompts = choices[:: request.n or 1]
        self.prompt_tokens = sum(len(choice.prompt_ids) for choice in prompts)
        self.completion_tokens = 0
        self._reused = [0] * len(choices)

    @property
    def cached_tokens(self) -> int:
        """How many of the prompts' tokens needn't be read again."""
        return sum(self._reused[:: self._request.n or 1])

    @property
    def usage(self) -> dict[str, Any]:
        """How many tokens were read and written."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def count(self, piece: Piece) -> None:
        """Count a piece in."""
        self.completion_tokens += len(piece.ids)
        self._reused[piece.index] = piece.num_reused

    async def whole(self, pieces: AsyncIterator[Piece]) -> dict[str, Any]:
        """The answer as one body.

        Args:
            pieces: Of all choices, as they come.
        """
        parts: list[list[Piece]] = [[] for _ in self._choices]
        async for piece in pieces:
            self.count(piece)
            parts[piece.index].append(piece)
        choices = []
        for index, came in enumerate(parts):
            text = self._echoed(index) + "".join(piece.text for piece in came)
            text, calls = self._sort(index, text, is_last=True)
            choice = {
                "index": index,
                "finish_reason": "tool_calls" if calls else came[-1].finish_reason,
                "logprobs": self._log_probs(index, came),
            }
            if self._is_chat:
                message = {"role": "assistant", "content": text}
                if calls:
                    message |= {"content": text or None, "tool_calls": calls}
                choice["message"] = message
            else:
                choice["text"] = text
            choices.append(choice)
        return {**self._head, "choices": choices, "usage": self.usage}

    async def events(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
        """The answer as server-sent events.

        Args:
            pieces: Of all choices, as they come.
        """
        options = self._request.stream_options
        has_usage = options is not None and options.include_usage
        none = {"usage": None} if has_usage else {}
        try:
            for index in range(len(self._choices)):
                if self._is_chat or self._request.echo:
                    start = self._grown(index, self._echoed(index), [], [])
                    yield _event({**self._head, "choices": [start], **none})
            async for piece in pieces:
                self.count(piece)
                is_last = piece.finish_reason is not None
                text, calls = self._sort(piece.index, piece.text, is_last)
                if not (text or is_last or self._request.wants_log_probs):
                    continue
                grown = self._grown(piece.index, text, calls, [piece])
                yield _event({**self._head, "choices": [grown], **none})
            if has_usage:
                yield _event({**self._head, "choices": [], "usage": self.usage})
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error_body(error))

    def _sort(self, index, text, is_last):
        """What is certain of a text that goes on, and the calls at its end."""
        if not self._tools:
            return text, []
        text, held = split_calls(self._held[index] + text)
        self._held[index] = held
        calls = find_calls(held, self._tools) if is_last else []
        if self._request.parallel_tool_calls is False:
            calls = calls[:1]
        return text + held if is_last and not calls else text, calls

    def _grown(self, index, text, calls, pieces):
        """What a choice has grown by, or how it begins."""
        reason = pieces[-1].finish_reason if pieces else None
        choice = {
            "index": index,
            "finish_reason": "tool_calls" if calls else reason,
            "logprobs": self._log_probs(index, pieces),
        }
        if not self._is_chat:
            return {**choice, "text": text}
        delta = {"content": text}
        if not pieces:
            delta["role"] = "assistant"
        if calls:
            delta["tool_calls"] = [{"index": i, **c} for i, c in enumerate(calls)]
        return {**choice, "delta": delta}

    def _echoed(self, index):
        """The text of the prompt, where it is to stand before the answer."""
        if self._is_chat or not self._request.echo:
            return ""
        prompt = self._request.prompts[index // (self._request.n or 1)]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)

    def _log_probs(self, index, pieces: Iterable[Piece]):
        """The log-probabilities of new tokens, if they are wanted."""
        if not self._request.wants_log_probs:
            return None
        log_probs = [x for piece in pieces for x in piece.log_probs]
        ids = [i for piece in pieces for i in piece.ids]
        tokens = [self._describe(*pair) for pair in zip(ids, log_probs, strict=True)]
        others = [
            [self._describe(*pair) for pair in likeliest]
            for piece in pieces
            for likeliest in piece.alternatives
        ]
        if self._is_chat:
            others = others or [[] for _ in tokens]
            content = [
                {**token, "top_logprobs": likeliest}
                for token, likeliest in zip(tokens, others, strict=True)
            ]
            return {"content": content, "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token["token"])
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": log_probs,
            # in OpenAI's form with the token itself; of tokens alike the likeliest
            "top_logprobs": [
                {t["token"]: t["logprob"] for t in (token, *reversed(likeliest))}
                for token, likeliest in zip(tokens, others, strict=True)
            ]
            if others
            else None,
            "text_offset": offsets,
        }

    def _describe(self, token_id, log_prob):
        # a pretrained model's vocabulary may be padded with ids that mean nothing
        known = [token_id] if token_id < self._tokenizer.vocab_size else []
        token = self._tokenizer.decode_bytes(known)
        text = token.decode("utf-8", "replace")
        return {"token": text, "logprob": log_prob, "bytes": list(token)}


def _event(body):
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n"
