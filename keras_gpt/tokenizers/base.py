"""What every tokenizer shares: special tokens, ids to bytes, its folder on disk."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from keras_gpt.files import atomic_path, read_json, write_json
from keras_gpt.tokenizers.inputs import check_text

CONFIG_FILE = "tokenizer_config.json"
# SentencePiece writes a space as this character, U+2581
SPACE_MARK = "▁"
END_OF_TEXT = "<|endoftext|>"
# What pretrained models call it, the first that exists counts
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")


class Tokenizer(ABC):
    """Text to token ids and back.

    A subclass says how ordinary text becomes ids (`_encode`, perhaps
    `_encode_batch`) and gives the bytes of every token; decoding, special tokens,
    saving and pickling are the same for all.

    Args:
        content: The bytes of the file that the tokenizer is saved as.
        token_bytes: What each id decodes to.
        special_tokens: The id of each special token by name.
        start_ids: Ids that the model wants before every text. Defaults to none.
    """

    file_name: str

    def __init__(
        self,
        content: bytes,
        token_bytes: list[bytes],
        special_tokens: dict[str, int],
        start_ids: Sequence[int] = (),
    ):
        self._content = content
        self._token_bytes = token_bytes
        self._special_tokens = special_tokens
        self._start_ids = tuple(start_ids)
        # the longest first, so that a name that begins another does not hide it
        names = sorted(special_tokens, key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")")

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of text in which nothing is special."""

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self._encode(text) for text in texts]

    @classmethod
    @abstractmethod
    def _from_content(cls, content: bytes) -> Self:
        """Make the tokenizer from the bytes of its file."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self._token_bytes)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The id of each special token by name."""
        return dict(self._special_tokens)

    @property
    def end_of_text_id(self) -> int | None:
        """The id that ends a document, `None` where there is no such token."""
        for name in END_OF_TEXT_NAMES:
            if name in self._special_tokens:
                return self._special_tokens[name]
        return None

    @property
    def start_ids(self) -> list[int]:
        """Ids that a pretrained model wants before every text, often none."""
        return list(self._start_ids)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ whenever the tokenizer does."""
        return _fingerprint(type(self), self._content)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Turn text into token ids.

        Args:
            text: The text.
            allow_special: Whether special tokens spelled in the text become their
                ids. By default they are ordinary text, so that no document and no
                user can forge them.

        Returns:
            The ids; none for an empty text.

        Raises:
            TypeError: `text` is not a `str`.
            ValueError: The text has a lone surrogate, which is not Unicode text, or
                a character that a `CharacterTokenizer` does not know.
        """
        check_text(text)
        if not (allow_special and self._special_tokens):
            return self._encode(text)
        return self._encode_special(text)

    def _encode_special(self, text: str) -> list[int]:
        """Ids of text in which the names of special tokens are these tokens."""
        return [
            token_id
            for part in self.split_special(text)
            for token_id in (self._encode(part) if isinstance(part, str) else [part])
        ]

    def split_special(self, text: str) -> list[str | int]:
        """Cut a text at the special tokens that it spells.

        Args:
            text: The text.

        Returns:
            Ordinary texts, which may be empty, with an id between any two.
        """
        if not self._special_tokens:
            return [text]
        # the pattern is one group: every second part is a special token
        return [
            self._special_tokens[part] if index % 2 else part
            for index, part in enumerate(self._special_pattern.split(text))
        ]

    def encode_batch(
        self, texts: Iterable[str], allow_special: bool = False
    ) -> list[list[int]]:
        """Turn many texts into token ids, in parallel where the library can.

        Args:
            texts: The texts.
            allow_special: As for `encode`.

        Returns:
            The ids of each text.

        Raises:
            TypeError: `texts` is one `str`, or not all of them are.
            ValueError: As for `encode`.
        """
        if isinstance(texts, str):
            raise TypeError(
                "`texts` must be several texts. Received one str. Use encode(text)."
            )
        texts = list(texts)
        if allow_special:
            return [self.encode(text, allow_special=True) for text in texts]
        for text in texts:
            check_text(text)
        return self._encode_batch(texts)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Turn token ids into text.

        Args:
            ids: One sequence of token ids: a list or a one-dimensional array.
            skip_special_tokens: Whether to leave special tokens out. By default
                they appear as their names.

        Returns:
            The text. Bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: An id is out of range, or `ids` is not one sequence.
        """
        return self.decode_bytes(ids, skip_special_tokens).decode("utf-8", "replace")

    def decode_bytes(
        self, ids: Sequence[int], skip_special_tokens: bool = False
    ) -> bytes:
        """Turn token ids into bytes, so that a part of a character is not lost.

        The bytes of a whole are the bytes of its parts, one after the other.

        Args:
            ids: As for `decode`.
            skip_special_tokens: As for `decode`.

        Returns:
            The bytes, UTF-8 if the ids are those of a text.

        Raises:
            ValueError: As for `decode`.
        """
        ids = self._check_ids(ids)
        if skip_special_tokens:
            special_ids = set(self._special_tokens.values())
            ids = [token_id for token_id in ids if token_id not in special_ids]
        return b"".join([self._token_bytes[token_id] for token_id in ids])

    def token(self, token_id: int) -> str:
        r"""What one id stands for, for display; a lone byte is shown as `\xe2`."""
        [token_id] = self._check_ids([token_id])
        return self._token_bytes[token_id].decode("utf-8", "backslashreplace")

    def token_id(self, name: str) -> int:
        """The id of a special token.

        Raises:
            ValueError: There is no special token of that name.
        """
        if name not in self._special_tokens:
            known = ", ".join(map(repr, self._special_tokens)) or "none"
            raise ValueError(
                f"Unknown special token. Received: name={name!r}. This tokenizer has: "
                f"{known}. Name special tokens when training it: "
                "train(..., special_tokens=[...])."
            )
        return self._special_tokens[name]

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer into a folder, each file whole or not at all.

        Args:
            directory: The folder, made if need be. It gets `tokenizer_config.json`
                and the file that holds the vocabulary.
        """
        with atomic_path(Path(directory) / self.file_name) as path:
            path.write_bytes(self._content)
        config = {
            "class": type(self).__name__,
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "special_tokens": self._special_tokens,
        }
        write_json(Path(directory) / CONFIG_FILE, config)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read a tokenizer that `save` wrote.

        Args:
            directory: The folder.

        Returns:
            The tokenizer, equal to the one saved.

        Raises:
            FileNotFoundError: The folder or one of its files is missing.
            ValueError: The folder holds another kind of tokenizer, or a file was
                truncated or edited.
        """
        config = read_config(directory)
        if config["class"] != cls.__name__:
            raise ValueError(
                f"{directory} holds a {config['class']}, not a {cls.__name__}. "
                "Use keras_gpt.tokenizers.load(directory), which chooses the class."
            )
        path = Path(directory) / cls.file_name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing. Copy the whole folder again.")
        content = path.read_bytes()
        if _fingerprint(cls, content) != config.get("fingerprint"):
            raise ValueError(
                f"{path} is truncated or was edited. Copy the whole folder again."
            )
        return cls._from_content(content)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the file's bytes: the libraries' objects forget settings."""
        return type(self)._from_content, (self._content,)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(vocab_size={self.vocab_size}, "
            f"special_tokens={list(self._special_tokens)})"
        )

    def _check_ids(self, ids):
        try:
            array = np.asarray(ids)
        except ValueError:  # rows of different lengths
            array = None
        if array is not None and array.ndim == 1 and array.size == 0:
            return []
        if array is None or array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(
                "`ids` must be one sequence of integers. Received: "
                f"ids={str(ids)[:80]}. Decode the rows of a batch one by one."
            )
        outside = array[(array < 0) | (array >= self.vocab_size)]
        if outside.size:
            raise ValueError(
                f"Token ids must be from 0 to {self.vocab_size - 1}. Received: "
                f"id={outside[0]}, vocab_size={self.vocab_size}. Is this the tokenizer "
                "that the model was trained with?"
            )
        return array.tolist()


def _fingerprint(tokenizer_class, content):
    name = tokenizer_class.__name__.encode()
    return hashlib.sha256(name + b"\0" + content).hexdigest()[:16]


def read_config(directory: str | Path) -> dict[str, Any]:
    """Read a saved tokenizer's `tokenizer_config.json`.

    Raises:
        FileNotFoundError: There is no such folder, or no tokenizer in it.
        ValueError: The file is damaged, or another library's.
    """
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        what = "has no tokenizer_config.json" if path.parent.is_dir() else "is missing"
        raise FileNotFoundError(
            f"The tokenizer folder {directory} {what}. Give the folder that "
            "tokenizer.save(directory) wrote."
        )
    config = read_json(path)
    if not isinstance(config, dict) or "class" not in config:
        raise ValueError(
            f"{path} was not written by keras_gpt: it has no 'class'. For another "
            "library's tokenizer.json use BytePairTokenizer(text of the file), for a "
            "SentencePiece model SentencePieceTokenizer(bytes of the file)."
        )
    return config
