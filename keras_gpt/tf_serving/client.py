"""`Client`: a GPT behind TensorFlow Serving, used like a `LanguageModel`."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from keras_gpt.generation.rows import check_prompts
from keras_gpt.tf_serving.connection import (
    ServingError,
    UnavailableError,
    VersionStatus,
)
from keras_gpt.tf_serving.inputs import (
    ANY_MODEL,
    check_address,
    check_controls,
    check_options,
    check_seconds,
    check_texts,
    pad_conversations,
    pad_ids,
)

_FIRST_PAUSE = 0.25  # seconds before the second try; doubles with each
_LONGEST_PAUSE = 10.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Completion:
    """What a served model added to a prompt.

    Attributes:
        text: The new text alone.
        num_tokens: How many tokens it is of.
        finish_reason: `"stop"` (the model ended the text) or `"length"`.
    """

    text: str
    num_tokens: int
    finish_reason: str


class Client:
    """Calls a model that `LanguageModel.export` wrote and TensorFlow Serving serves.

    Threads may share a client. Over gRPC it imports `tensorflow_serving.apis`, which
    imports TensorFlow: seconds, once a process. REST needs neither.

    Args:
        address: `"host:port"` for gRPC (TensorFlow Serving's port 8500), or
            `"http://host:port"` for REST (8501), also with https or a path before
            `/v1`.
        model: The name that the server serves it under.
        version: The version to call. Defaults to `None`, the newest.
        label: A label that the server's configuration gives to a version, instead of
            `version`.
        timeout: Seconds that a request may take, with all its retries.
        retries: How often a request is sent again when the server isn't available (no
            connection, UNAVAILABLE, or HTTP status 429, 502, 503 or 504), after pauses
            that double from a quarter of a second. Other errors aren't retried.
        batch_size: Most rows of a request: longer lists are cut into several, one sent
            after the other. Not above the server's `max_batch_size`, if it batches.
        credentials: For gRPC with TLS, `grpc.ssl_channel_credentials(...)`. Defaults to
            `None`, no encryption.

    Raises:
        ValueError: An argument is out of its range.
        ModuleNotFoundError: A package that the protocol needs isn't installed.

    Example:

        from keras_gpt.tf_serving import Client

        with Client("http://localhost:8501", model="docs") as client:
            client.wait_until_ready()
            print(client.generate("Once upon a time", max_new_tokens=64))
    """

    def __init__(
        self,
        address: str,
        *,
        model: str,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        batch_size: int = 32,
        credentials: Any = None,
    ):
        is_rest = check_address(address)
        check_options(model, version, label, timeout, retries, batch_size)
        if credentials is not None and is_rest:
            raise ValueError(
                "`credentials` are for gRPC. Over REST, encrypt with an address that "
                f"begins with https://. Received: address={address!r}."
            )
        self.address = address
        self.model = model
        self.version = version
        self.label = label
        self.timeout = timeout
        self.retries = retries
        self.batch_size = batch_size
        arguments = (address, model, version, label)
        if is_rest:  # each imports only what its protocol needs
            from keras_gpt.tf_serving.rest import RestConnection

            self._connection = RestConnection(*arguments)
        else:
            from keras_gpt.tf_serving.rpc import GrpcConnection

            self._connection = GrpcConnection(*arguments, credentials=credentials)

    def generate(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int | Sequence[int] | None = None,
        **controls,
    ) -> str | list[str]:
        """Continue prompts. Each control is one value, or a list with one a prompt.

        Args:
            prompts: One prompt or several.
            max_new_tokens: Most tokens to add. Defaults to the export's.
            **controls: `temperature`, `top_k`, `top_p`, as of `keras_gpt.generate`,
                by default the export's; and `seed`, by default 0, which counts up, so
                that each prompt has its own. The others are fixed by the export. Of
                one with adapters also `adapter`, which then is needed: a name, or
                `""` for the base alone.

        Returns:
            The new text alone: a string for one prompt, else a list.

        Raises:
            TypeError: A prompt isn't a string.
            ValueError: A prompt or control is out of its range, or a control is none
                that a request can choose.
            ServingError: The server refuses the request, or there is none.
            TimeoutError: The answer took too long.
        """
        completions = self.complete(prompts, max_new_tokens, **controls)
        texts = [completion.text for completion in completions]
        return texts[0] if isinstance(prompts, str) else texts

    def complete(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int | Sequence[int] | None = None,
        **controls,
    ) -> list[Completion]:
        """As `generate`, with everything that is known about the result.

        Args:
            prompts: One prompt or several.
            max_new_tokens: Most tokens to add. Defaults to the export's.
            **controls: Others of `generate`, which raises the same errors.

        Returns:
            A `Completion` for each prompt.
        """
        prompts = check_texts(prompts, "prompts")
        controls = check_controls(
            len(prompts), max_new_tokens=max_new_tokens, **controls
        )
        inputs = {"prompt": np.array(prompts, object), **controls}
        names = ("text", "num_tokens", "finish_reason")
        return [
            Completion(str(text), int(num_tokens), str(reason))
            for text, num_tokens, reason in self._predict("generate", inputs, names)
        ]

    def chat(
        self,
        messages: Sequence[dict[str, str]] | Sequence[Sequence[dict[str, str]]],
        max_new_tokens: int | Sequence[int] | None = None,
        **controls,
    ) -> str | list[str]:
        """Answer the last message of a conversation, or of each of several.

        Args:
            messages: A conversation as of `LanguageModel.chat`, or a list of them.
            max_new_tokens: Most tokens of an answer. Defaults to the export's.
            **controls: As of `generate`, which raises the same errors.

        Returns:
            The answer's text: a string for one conversation, else a list.
        """
        is_one = bool(messages) and isinstance(messages[0], dict)
        conversations = [messages] if is_one else list(messages)
        inputs = pad_conversations(conversations)
        signature = "chat"
        if max_new_tokens is not None or controls:
            signature = "chat_with_controls"
            inputs |= check_controls(
                len(conversations), max_new_tokens=max_new_tokens, **controls
            )
        answers = [str(text) for [text] in self._predict(signature, inputs, ("text",))]
        return answers[0] if is_one else answers

    def summarize(self, texts: str | Sequence[str]) -> str | list[str]:
        """Summarize texts, as `LanguageModel.summarize` does.

        Args:
            texts: One text or several.

        Returns:
            A string for one text, else a list.

        Raises:
            TypeError: A text isn't a string.
            ServingError: The server refuses the request, or there is none.
            TimeoutError: The answer took too long.
        """
        return self._answer("summarize", texts)

    def translate(
        self, texts: str | Sequence[str], *, source: str, target: str
    ) -> str | list[str]:
        """Translate texts, as `LanguageModel.translate` does.

        Args:
            texts: One text or several.
            source: Code of the language of the texts, such as `"en"`.
            target: Code of the language to translate to.

        Returns:
            A string for one text, else a list.

        Raises:
            TypeError: A text isn't a string.
            ServingError: The server refuses the request, or there is none.
            TimeoutError: The answer took too long.
        """
        return self._answer("translate", texts, source=source, target=target)

    def generate_ids(
        self,
        ids: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int] | None = None,
        **controls,
    ) -> list[list[int]]:
        """Continue prompts of token ids.

        Args:
            ids: A list of prompts, each a list of token ids.
            max_new_tokens: Most tokens to add. Defaults to the export's.
            **controls: Others of `generate`, which raises the same errors.

        Returns:
            The new ids of each prompt.
        """
        prompts = check_prompts(ids, ANY_MODEL)
        controls = check_controls(
            len(prompts), max_new_tokens=max_new_tokens, **controls
        )
        return self._predict_ids("generate_ids", {"token_ids": prompts, **controls})

    def score(self, texts: str | Sequence[str]) -> np.ndarray | list[np.ndarray]:
        """Log-probability in nats of each token given those before it.

        Args:
            texts: One text or several.

        Returns:
            For each text float32 `(tokens - 1,)`: the first token has none before it.

        Raises:
            TypeError: A text isn't a string.
            ServingError: The server refuses the request, or there is none.
            TimeoutError: The answer took too long.
        """
        inputs = {"text": np.array(check_texts(texts, "texts"), object)}
        scores = [
            np.array(row[: max(count - 1, 0)], "float32")
            for row, count in self._predict(
                "score", inputs, ("log_probs", "num_tokens")
            )
        ]
        return scores[0] if isinstance(texts, str) else scores

    def tokenize(self, texts: str | Sequence[str]) -> list[int] | list[list[int]]:
        """Encode texts with the model's tokenizer.

        Args:
            texts: One text or several.

        Returns:
            The token ids of one text, or of each.

        Raises:
            TypeError: A text isn't a string.
            ServingError: The server refuses the request, or there is none.
            TimeoutError: The answer took too long.
        """
        inputs = {"text": np.array(check_texts(texts, "texts"), object)}
        ids = self._predict_ids("tokenize", inputs)
        return ids[0] if isinstance(texts, str) else ids

    def metadata(self) -> dict[str, Any]:
        """Describe the model's signatures.

        Returns:
            `{signature: {"inputs": {name: {"dtype": ..., "shape": ...}}, "outputs":
            ...}}`, where a shape is a tuple with `None` for a size that varies.

        Raises:
            ServingError: The server has no such model, or there is none.
            TimeoutError: The answer took too long.
        """
        return self._send(self._connection.metadata)

    def status(self) -> list[VersionStatus]:
        """List the model's versions, or the client's alone, with their states.

        Raises:
            ServingError: The server has no such model, or there is none.
            TimeoutError: The answer took too long.
        """
        return self._send(self._connection.status)

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Return as soon as the server can answer requests to the model.

        Args:
            timeout: Seconds to wait at most.

        Raises:
            ServingError: The server failed to load the model.
            TimeoutError: It isn't ready in time.
        """
        check_seconds("timeout", timeout)
        deadline = time.monotonic() + timeout
        while True:
            seconds = max(0.1, min(self.timeout, deadline - time.monotonic()))
            try:
                if self.label is not None:
                    # a label is no part of the status
                    self._connection.metadata(seconds)
                    return
                versions = self._connection.status(seconds)
                states = {version.state for version in versions}
                if "AVAILABLE" in states:
                    return
                errors = [version.error for version in versions if version.error]
                if states == {"END"} and errors:
                    raise ServingError(
                        "FAILED_PRECONDITION",
                        f"The server failed to load {self.model!r}: {errors[-1]}",
                    )
                reason = ", ".join(f"{v.version} is {v.state}" for v in versions)
            except TimeoutError as error:
                reason = str(error)
            except ServingError as error:
                # INVALID_ARGUMENT is what a server says of a label not yet known
                passing = {"UNAVAILABLE", "NOT_FOUND"}
                if self.label is not None:
                    passing.add("INVALID_ARGUMENT")
                if error.code not in passing:
                    raise
                reason = error.message
            if time.monotonic() + _POLL_SECONDS > deadline:
                raise TimeoutError(
                    f"{self.model!r} isn't ready after {timeout:.3g} seconds: {reason}"
                )
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Close the connections to the server."""
        self._connection.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _predict(
        self, signature: str, inputs: dict[str, Any], names: tuple[str, ...]
    ) -> Iterator[tuple]:
        """Give the named outputs row by row, from requests of `batch_size` rows."""
        rows = len(next(iter(inputs.values())))
        for start in range(0, rows, self.batch_size):
            part = {k: v[start : start + self.batch_size] for k, v in inputs.items()}
            if "token_ids" in part:
                part |= pad_ids(part["token_ids"])
            outputs = self._send(partial(self._connection.predict, signature, part))
            missing = [name for name in names if name not in outputs]
            if missing:
                raise ServingError(
                    "INTERNAL",
                    f"{self.model!r} has no output {missing[0]!r} of signature "
                    f"{signature!r}. Was it exported by keras_gpt?",
                )
            yield from zip(*(outputs[name] for name in names), strict=True)

    def _answer(self, signature, texts, **languages):
        rows = check_texts(texts, "texts")
        columns = {"text": rows, **{k: [v] * len(rows) for k, v in languages.items()}}
        inputs = {name: np.array(column, object) for name, column in columns.items()}
        answers = [str(text) for [text] in self._predict(signature, inputs, ("text",))]
        return answers[0] if isinstance(texts, str) else answers

    def _predict_ids(self, signature: str, inputs: dict[str, Any]) -> list[list[int]]:
        """Rows of token ids without what they are padded with."""
        rows = self._predict(signature, inputs, ("token_ids", "num_tokens"))
        return [[int(token) for token in row[:count]] for row, count in rows]

    def _send(self, call: Callable[[float], Any]) -> Any:
        """Call with the seconds that are left, again when that may help."""
        deadline = time.monotonic() + self.timeout
        attempt = 0
        while True:
            try:
                return call(max(0.001, deadline - time.monotonic()))
            except UnavailableError:
                # not all clients at once, so between a half and the whole of it
                pause = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)
                pause *= random.uniform(0.5, 1.0)
                if attempt >= self.retries or time.monotonic() + pause > deadline:
                    raise
            attempt += 1
            time.sleep(pause)
