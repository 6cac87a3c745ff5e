"""Text to token ids and back: characters, SentencePiece, byte-pair encoding."""

from pathlib import Path

from keras_gpt.tokenizers.base import Tokenizer, read_config
from keras_gpt.tokenizers.byte_pair import BytePairTokenizer
from keras_gpt.tokenizers.character import CharacterTokenizer
from keras_gpt.tokenizers.chat_template import (
    ChatTemplate,
    check_messages,
    encode_answers,
    encode_chat,
    leave_out_oldest,
)
from keras_gpt.tokenizers.sentence_piece import SentencePieceTokenizer

__all__ = [
    "BytePairTokenizer",
    "CharacterTokenizer",
    "ChatTemplate",
    "SentencePieceTokenizer",
    "Tokenizer",
    "check_messages",
    "encode_answers",
    "encode_chat",
    "leave_out_oldest",
    "load",
]

_CLASSES = (BytePairTokenizer, CharacterTokenizer, SentencePieceTokenizer)
CLASSES = {tokenizer.__name__: tokenizer for tokenizer in _CLASSES}


def load(directory: str | Path) -> Tokenizer:
    """Read whichever tokenizer was saved in a folder.

    Args:
        directory: The folder that `tokenizer.save(directory)` wrote.

    Returns:
        A tokenizer of the class that was saved.

    Raises:
        FileNotFoundError: The folder or one of its files is missing.
        ValueError: A file was truncated or edited, or is another library's.

    Example:

    >>> import tempfile
    >>> from keras_gpt import tokenizers
    >>> tokenizer = tokenizers.CharacterTokenizer("abc")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     tokenizer.save(directory)
    ...     tokenizers.load(directory)
    CharacterTokenizer(vocab_size=3, special_tokens=[])
    """
    name = read_config(directory)["class"]
    if name not in CLASSES:
        raise ValueError(
            f"Unknown tokenizer class in {directory}. Received: class={name!r}. "
            f"One of: {', '.join(CLASSES)}."
        )
    return CLASSES[name].load(directory)
