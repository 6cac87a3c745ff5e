"""`CharacterTokenizer`: one token for each character."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, Self

import numpy as np

from keras_gpt.config import check_choice
from keras_gpt.tokenizers.base import Tokenizer
from keras_gpt.tokenizers.inputs import (
    check_special_tokens,
    check_text,
    check_vocab_size,
    read_corpus,
)

UNKNOWN = "<|unknown|>"


class CharacterTokenizer(Tokenizer):
    """One token for each character (Unicode code point), in the order of code points.

    Args:
        characters: The characters; they are sorted and get the ids from 0 on.
        special_tokens: Names of special tokens, with the ids after the characters'.
        unknown: What a character outside `characters` becomes when encoded:
            `"error"` raises, `"symbol"` adds the special token `<|unknown|>`.

    References:
        - [nanoGPT, data/shakespeare_char](https://github.com/karpathy/nanoGPT)

    Example:

    >>> from keras_gpt.tokenizers import CharacterTokenizer
    >>> tokenizer = CharacterTokenizer.train(["hello world"], progress=False)
    >>> tokenizer.vocab_size
    8
    >>> tokenizer.encode("hello")
    [3, 2, 4, 4, 5]
    >>> tokenizer.decode([3, 2, 4, 4, 5])
    'hello'
    """

    file_name = "characters.json"

    def __init__(
        self,
        characters: Iterable[str],
        special_tokens: Sequence[str] = (),
        unknown: Literal["error", "symbol"] = "error",
    ):
        characters = list(characters)
        for character in characters:
            check_text(character)
            if len(character) != 1:
                raise ValueError(
                    f"`characters` must be single characters. Received: {character!r}."
                )
        characters = sorted(set(characters))
        names = _special_names(special_tokens, unknown)
        content = {
            "characters": characters,
            "special_tokens": [name for name in names if name != UNKNOWN],
            "unknown": unknown,
        }
        super().__init__(
            json.dumps(content, ensure_ascii=False).encode("utf-8"),
            [token.encode("utf-8") for token in [*characters, *names]],
            {name: len(characters) + index for index, name in enumerate(names)},
        )
        # By code point; the last is that of any beyond
        codes = [ord(character) for character in characters]
        unknown_id = self._special_tokens.get(UNKNOWN, -1)
        self._ids = np.full(max(codes, default=0) + 2, unknown_id)
        self._ids[codes] = np.arange(len(codes))

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int | None = None,
        *,
        special_tokens: Sequence[str] = (),
        unknown: Literal["error", "symbol"] = "error",
        progress: bool = True,
    ) -> Self:
        """Collect the characters of a corpus.

        Args:
            texts: Any iterable of texts, read once; one `str` is one text.
            vocab_size: Most tokens to keep, special tokens included: the most
                frequent characters stay. Defaults to `None`, all of them.
            special_tokens: Names of special tokens.
            unknown: As for `CharacterTokenizer`.
            progress: Whether to show progress on stderr.

        Returns:
            A `CharacterTokenizer`.

        Raises:
            ValueError: The corpus is empty, or `vocab_size` leaves no room for a
                character.
        """
        num_special = len(_special_names(special_tokens, unknown))
        if vocab_size is not None:
            reason = f"{num_special} special tokens and one character"
            check_vocab_size(vocab_size, num_special + 1, reason)
        counts = Counter()
        with read_corpus(texts, progress) as corpus:
            for text in corpus:
                counts.update(text)
        characters = sorted(counts, key=lambda c: (-counts[c], c))
        if vocab_size is not None:
            characters = characters[: vocab_size - num_special]
        return cls(characters, special_tokens, unknown)

    @classmethod
    def _from_content(cls, content):
        fields = json.loads(content)
        return cls(fields["characters"], fields["special_tokens"], fields["unknown"])

    def _encode(self, text):
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
        if (ids < 0).any():
            index = int(ids.argmin())
            raise ValueError(
                f"The character {text[index]!r} (U+{codes[index]:04X}) at index "
                f"{index} is not in the vocabulary of {self._ids.max() + 1} "
                "characters. Train on text that has it, or with unknown='symbol'."
            )
        return ids.tolist()


def _special_names(special_tokens, unknown):
    check_choice("unknown", unknown, ("error", "symbol"))
    names = check_special_tokens(special_tokens)
    return [*names, UNKNOWN] if unknown == "symbol" and UNKNOWN not in names else names
