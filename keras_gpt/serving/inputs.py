"""What a caller asks of a served model, checked before anything is sent."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from urllib.parse import urlsplit

import numpy as np

_MOST = 2**31 - 1  # the model's integers are int32
_BEYOND = 2**30  # more than any vocabulary or text: no limit


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
    if version is not None and not (isinstance(version, int) and version >= 0):
        raise ValueError(
            f"`version` must be an integer of at least 0. Received: {version!r}."
        )
    if not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise ValueError(f"`timeout` must be seconds, above 0. Received: {timeout!r}.")
    for name, value, least in (
        ("retries", retries, 0),
        ("batch_size", batch_size, 1),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(
                f"`{name}` must be an integer of at least {least}. Received: {value!r}."
            )


def check_texts(texts, name: str) -> list[str]:
    """One text or several as a list.

    Raises:
        TypeError: They aren't strings.
        ValueError: One can't be written in UTF-8.
    """
    if isinstance(texts, str):
        texts = [texts]
    elif isinstance(texts, bytes) or not isinstance(texts, Sequence | np.ndarray):
        raise TypeError(
            f"`{name}` must be a string or a list of strings. Received: "
            f"{type(texts).__name__}."
        )
    checked = []
    for row, text in enumerate(texts):
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
        checked.append(str(text))
    return checked


def check_ids(ids) -> list[list[int]]:
    """Prompts as lists of token ids.

    Raises:
        ValueError: They aren't.
    """
    if isinstance(ids, str) or not isinstance(ids, Sequence | np.ndarray):
        raise ValueError(
            "`ids` must be a list of prompts, each a list of token ids. Received: "
            f"{type(ids).__name__}."
        )
    checked = []
    for row, prompt in enumerate(ids):
        if isinstance(prompt, str) or not isinstance(prompt, Sequence | np.ndarray):
            raise ValueError(
                "`ids` must be a list of prompts, each a list of token ids. Received "
                f"at {row}: {prompt!r}. For one prompt write [ids]."
            )
        if len(prompt) == 0:
            raise ValueError(
                f"Prompt {row} is empty. Give at least one token, for example the "
                "end-of-text token."
            )
        for token in prompt:
            if not isinstance(token, Integral) or not 0 <= token <= _MOST:
                raise ValueError(
                    f"`ids` must be token ids. Received in prompt {row}: {token!r}."
                )
        checked.append([int(token) for token in prompt])
    return checked


def pad_ids(prompts: list[list[int]]) -> dict[str, np.ndarray]:
    """Inputs `token_ids`, padded with 0 on the right, and `lengths`."""
    lengths = np.array([len(prompt) for prompt in prompts], "int32")
    token_ids = np.zeros((len(prompts), lengths.max()), "int32")
    for row, prompt in enumerate(prompts):
        token_ids[row, : len(prompt)] = prompt
    return {"token_ids": token_ids, "lengths": lengths}


def check_controls(
    rows: int, *, max_new_tokens, temperature=0.8, top_k=40, top_p=None, seed=0
) -> dict[str, np.ndarray]:
    """The controls as inputs of the model, a value for each row.

    Raises:
        ValueError: One is out of its range, or a list has another length.
    """

    def spread(name, value, default, is_valid, wanted, dtype):
        values = value if isinstance(value, Sequence | np.ndarray) else [value] * rows
        if len(values) != rows:
            raise ValueError(
                f"`{name}` must be one value or one for each of the {rows} prompts. "
                f"Received: {len(values)} values."
            )
        values = [default if item is None else item for item in values]
        for item in values:
            if not (isinstance(item, Real) and math.isfinite(item) and is_valid(item)):
                raise ValueError(f"`{name}` must be {wanted}. Received: {item!r}.")
        return np.minimum(np.array(values, "float64"), _BEYOND).astype(dtype)

    top_k = spread(
        "top_k",
        top_k,
        _BEYOND,
        lambda k: k >= 1 and k == int(k),
        "an integer of at least 1, or None for no limit",
        "int32",
    )
    return {
        "max_new_tokens": spread(
            "max_new_tokens",
            max_new_tokens,
            64,
            lambda n: 0 <= n <= _BEYOND and n == int(n),
            "an integer from 0 to 2**30",
            "int32",
        ),
        "temperature": spread(
            "temperature",
            temperature,
            1.0,
            lambda t: t >= 0,
            "at least 0 (0 is greedy)",
            "float32",
        ),
        "top_k": np.where(top_k == _BEYOND, 0, top_k),  # 0 is no limit there
        "top_p": spread(
            "top_p",
            top_p,
            1.0,
            lambda p: 0 < p <= 1,
            "above 0 and at most 1, or None for no limit",
            "float32",
        ),
        "seed": _spread_seeds(seed, rows),
    }


def _spread_seeds(seed, rows: int) -> np.ndarray:
    """Counted up from one seed, or each row's own."""
    is_list = isinstance(seed, Sequence | np.ndarray)
    for item in seed if is_list else [seed]:
        if not isinstance(item, Integral) or not 0 <= item <= _MOST:
            raise ValueError(
                f"`seed` must be an integer from 0 to {_MOST}. Received: {item!r}."
            )
    if is_list and len(seed) != rows:
        raise ValueError(
            f"`seed` must be one integer or one for each of the {rows} prompts. "
            f"Received: {len(seed)} values."
        )
    seeds = [int(item) for item in seed] if is_list else range(seed, seed + rows)
    # beyond the last seed it goes on from the first
    return np.array([item % (_MOST + 1) for item in seeds], "int32")
