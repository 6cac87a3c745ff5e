"""What a caller asks of a served model, checked before anything is sent."""

from collections.abc import Sequence
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np

from keras_gpt.config import suggest
from keras_gpt.controls import CONTROLS
from keras_gpt.export.settings import LIMIT, OWN, ROW_CONTROLS
from keras_gpt.generation.rows import control_arrays, make_rows
from keras_gpt.tokenizers import check_messages

_MOST = 2**31 - 1  # the model's integers are int32
# only the server knows how large its model is
ANY_MODEL = SimpleNamespace(vocab_size=2**30, context_length=2**30)


def check_address(address: str) -> bool:
    """Whether it is one of REST.

    Raises:
        ValueError: It is none at all.
    """
    if isinstance(address, str):
        url = urlsplit(address)
        if url.scheme in ("http", "https"):
            if url.hostname:
                return True
        elif ":" in address.strip(":"):
            return False
    raise ValueError(
        "`address` must be 'host:port' for gRPC, or begin with http:// or https:// for "
        f"REST. Received: {address!r}."
    )


def check_options(model, version, label, timeout, retries, batch_size) -> None:
    """Check the other options of a `Client`.

    Raises:
        ValueError: One is out of its range.
    """
    if not isinstance(model, str) or not model:
        raise ValueError(
            "`model` must be the name that the server serves the model under. "
            f"Received: {model!r}."
        )
    if version is not None and label is not None:
        raise ValueError(
            "Give `version` or `label`, not both. Received: "
            f"version={version!r}, label={label!r}."
        )
    check_seconds("timeout", timeout)
    for name, value, least in (
        ("version", 0 if version is None else version, 0),
        ("retries", retries, 0),
        ("batch_size", batch_size, 1),
    ):
        if type(value) is not int or value < least:
            raise ValueError(
                f"`{name}` must be an integer of at least {least}. Received: {value!r}."
            )


def check_seconds(name: str, value) -> None:
    """Check a time.

    Raises:
        ValueError: It isn't a number above 0.
    """
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be seconds, above 0. Received: {value!r}.")


def check_texts(texts, name: str) -> list[str]:
    """One text or several as a list.

    Raises:
        TypeError: They aren't strings.
        ValueError: One can't be written in UTF-8.
    """
    is_list = isinstance(texts, Sequence | np.ndarray)
    checked = list(texts) if is_list and not isinstance(texts, str | bytes) else [texts]
    for row, text in enumerate(checked):
        if not isinstance(text, str):
            raise TypeError(
                f"`{name}` must be a string or a list of strings. Received at {row}: "
                f"{text!r}."
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"`{name}` must be text that UTF-8 can write, so without lone "
                f"surrogates. Received at {row}: {text[:50]!r}."
            ) from error
    return checked


def pad_ids(prompts: list[list[int]]) -> dict[str, np.ndarray]:
    """Inputs `token_ids`, padded with 0 on the right, and `lengths`."""
    lengths = np.array([len(prompt) for prompt in prompts], "int32")
    token_ids = np.zeros((len(prompts), lengths.max()), "int32")
    for row, prompt in enumerate(prompts):
        token_ids[row, : len(prompt)] = prompt
    return {"token_ids": token_ids, "lengths": lengths}


def check_controls(rows: int, **controls) -> dict[str, np.ndarray]:
    """The controls as inputs of the model, a value for each row.

    Args:
        rows: How many there are.
        **controls: As of `Client.generate`; what isn't there is the model's own, as is
            `None` for `max_new_tokens`.

    Raises:
        TypeError: There is no such control.
        ValueError: One is out of its range, a list has another length, or requests
            can't choose it.
    """
    adapter = controls.pop("adapter", None)
    for name, value in controls.items():
        if name not in ROW_CONTROLS:
            _refuse(name, value)
    if controls.get("max_new_tokens") is None:
        controls.pop("max_new_tokens", None)
    checked = make_rows(ANY_MODEL, [[0]] * rows, **{"max_new_tokens": 0, **controls})
    seeds = [row.seed for row in checked]
    if max(seeds, default=0) > _MOST:
        raise ValueError(
            f"`seed` must be at most {_MOST} in every row. Received: "
            f"{controls['seed']!r} for {rows} rows."
        )
    inputs = control_arrays(checked)
    inputs["max_new_tokens"] = np.array([r.max_new_tokens for r in checked], "int32")
    inputs["seed"] = np.array(seeds, "int32")
    inputs["top_k"][inputs["top_k"] == LIMIT] = 0  # there 0 is no limit
    for name in set(ROW_CONTROLS) - {"seed", *controls}:
        inputs[name][:] = OWN
    if adapter is not None:  # an input of exports with adapters alone
        names = [adapter] * rows if isinstance(adapter, str) else adapter
        inputs["adapter"] = np.array(check_texts(names, "adapter"), object)
        if len(names) != rows:
            raise ValueError(
                f"`adapter` must be one name or one for each of the {rows} prompts. "
                f"Received: {len(names)} names."
            )
    return {name: inputs[name] for name in (*ROW_CONTROLS, "adapter") if name in inputs}


def pad_conversations(conversations) -> dict[str, np.ndarray]:
    """Inputs `roles` and `contents`, padded with at least one empty string.

    Args:
        conversations: Lists of messages, each with `"role"` and `"content"`.

    Raises:
        ValueError: A message lacks something, or a conversation has none.
    """
    for messages in conversations:
        check_messages(messages)
    shape = (len(conversations), max(map(len, conversations), default=0) + 1)
    inputs = {name: np.full(shape, "", object) for name in ("roles", "contents")}
    for row, messages in enumerate(conversations):
        for place, message in enumerate(messages):
            inputs["roles"][row, place] = message["role"]
            inputs["contents"][row, place] = message["content"]
        check_texts(list(inputs["contents"][row]), "messages")
    return inputs


def _refuse(name, value):
    """Say why a request can't choose a control, and the way out."""
    if name in CONTROLS or name == "stop_ids":
        raise ValueError(
            f"`{name}` is fixed when a model is exported: give it to `lm.export`. "
            f"Received: {name}={value!r}."
        )
    if name == "num_return_sequences":
        raise ValueError(
            "`num_return_sequences` isn't served: repeat the prompt, each time with "
            f"another seed. Received: {name}={value!r}."
        )
    raise TypeError(f"Unknown control. {suggest('control', name, ROW_CONTROLS)}")
