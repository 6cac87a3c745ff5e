"""What tokenizers are given: texts, names and sizes, checked and counted."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# The largest vocabularies of models have 260,000; a library makes room for all of them
# at once, and ends the process where it can't
MOST_TOKENS = 10_000_000


def check_text(text: Any) -> None:
    """Raise unless `text` is a `str` that can be written as UTF-8."""
    if not isinstance(text, str):
        raise TypeError(
            f"A text must be a str. Received: {str(text)[:80]!r} of type "
            f"{type(text).__name__}. Decode bytes first; give lists to encode_batch."
        )
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                "A text must be valid Unicode. Received: the lone surrogate "
                f"{text[error.start]!r} at index {error.start}. Read files with "
                "encoding='utf-8', errors='replace'."
            ) from error


def check_special_tokens(special_tokens: Sequence[str]) -> list[str]:
    """Raise `ValueError` unless these can name special tokens, and list them."""
    if isinstance(special_tokens, str):
        special_tokens = [special_tokens]
    names = list(special_tokens)
    for name in names:
        if not isinstance(name, str) or len(name) < 2:
            raise ValueError(
                "A name in `special_tokens` must be a str of at least 2 characters. "
                f"Received: {name!r}. Try '<|name|>'."
            )
        check_text(name)
    if len(set(names)) < len(names):
        raise ValueError(
            f"`special_tokens` must differ. Received: special_tokens={names}."
        )
    return names


def check_vocab_size(vocab_size: Any, minimum: int, reason: str) -> None:
    """Raise `ValueError` unless `vocab_size` is an integer that a library can take."""
    is_integer = isinstance(vocab_size, int) and not isinstance(vocab_size, bool)
    if not is_integer or not minimum <= vocab_size <= MOST_TOKENS:
        raise ValueError(
            f"`vocab_size` must be an integer of at least {minimum}: {reason}; and of "
            f"at most {MOST_TOKENS:,}. Received: vocab_size={vocab_size!r}."
        )


@contextmanager
def read_corpus(texts: Iterable[str], progress: bool) -> Iterator[Iterator[str]]:
    """Give the texts one by one, checked, with a spinner that counts them on stderr.

    Args:
        texts: The texts; one `str` is one text.
        progress: Whether to show the spinner, which stays until the block ends.

    Yields:
        An iterator over the texts, which raises `ValueError` at its end if there
        was not one character.
    """
    texts = [texts] if isinstance(texts, str) else texts
    if not progress:
        yield _count_texts(texts, lambda message: None)
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("Reading texts") as status:
        yield _count_texts(texts, status.update)


def _count_texts(texts, show):
    num_texts = num_characters = 0
    shown_at = time.monotonic()
    for text in texts:
        check_text(text)
        num_texts += 1
        num_characters += len(text)
        if time.monotonic() - shown_at > 0.1:
            shown_at = time.monotonic()
            show(f"Reading: {num_texts:,} texts, {num_characters:,} characters")
        yield text
    if not num_characters:
        raise ValueError(
            f"The corpus is empty: {num_texts} texts without a character. Check the "
            "source of `texts`; a generator can be read only once."
        )
    show(f"Learning from {num_texts:,} texts, {num_characters:,} characters")
