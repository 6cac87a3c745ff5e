"""`SentencePieceTokenizer`: subwords by the `sentencepiece` library, without loss."""

import io
import re
from collections.abc import Iterable, Sequence
from typing import Literal, Self

from keras_gpt.config import check_choice
from keras_gpt.tokenizers.base import END_OF_TEXT, SPACE_MARK, Tokenizer
from keras_gpt.tokenizers.inputs import (
    check_special_tokens,
    check_vocab_size,
    read_corpus,
)

# What one training sentence is: up to 4,000 characters that end with a word. The
# library drops a sentence with U+2585, its mark for the unknown: one ends there too.
_SENTENCE = re.compile(r"[^\u2585]{1,4000}(?<!\s)(?=[\s\u2585]|\Z)|[^\u2585]{1,4000}")

# What makes a model lossless, and training quiet
_OPTIONS = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    # Without a piece for the space it would become the bytes of "▁"
    "required_chars": SPACE_MARK,
    "unk_surface": "\ufffd",
    "unk_id": 0,
    "bos_id": -1,
    "eos_id": -1,
    "pad_id": -1,
    "split_digits": True,
    "hard_vocab_limit": False,
    "max_sentence_length": 1 << 20,
    "minloglevel": 2,
}


class SentencePieceTokenizer(Tokenizer):
    """Subwords by SentencePiece; every text decodes to itself.

    Text is not normalized, spaces are kept as they are, and characters outside the
    vocabulary become their UTF-8 bytes. Id 0 is the library's `<unk>`, which is never
    used; special tokens follow, then the 256 bytes, then the pieces.

    The library writes a space as U+2581 "▁" and so would decode a "▁" of the text to
    a space. A "▁" in the text is therefore given by its three bytes.

    The library keeps the corpus in memory while it learns: of more than a few GB give
    a sample. tensorflow-text has an older copy of it, which gives the same ids with
    `model_type="bpe"`; with `"unigram"` it may choose another of several equally
    likely cuts, such as of a long row of spaces.

    Args:
        model: The bytes of a SentencePiece model with byte fallback that neither
            normalizes nor adds a space in front, as `train` makes them.

    Raises:
        ValueError: `model` is no such model.

    References:
        - [SentencePiece](https://arxiv.org/abs/1808.06226)
        - [Training options](
          https://github.com/google/sentencepiece/blob/master/doc/options.md)

    Example:

    >>> from keras_gpt.tokenizers import SentencePieceTokenizer
    >>> texts = ["low lower lowest", "new newer newest"]
    >>> tokenizer = SentencePieceTokenizer.train(texts, vocab_size=300, progress=False)
    >>> tokenizer.encode("<|endoftext|>") == [tokenizer.end_of_text_id]
    False
    >>> tokenizer.decode(tokenizer.encode("  any text: 你好 ▁"))
    '  any text: 你好 ▁'
    """

    file_name = "tokenizer.model"

    def __init__(self, model: bytes):
        from sentencepiece import SentencePieceProcessor

        self._processor = processor = SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                "`model` must be the bytes of a SentencePiece model. Received: "
                f"{str(model)[:40]} ({error})."
            ) from error
        ids = range(processor.vocab_size())
        super().__init__(
            model,
            [_piece_bytes(processor, i) for i in ids],
            {processor.id_to_piece(i): i for i in ids if processor.is_control(i)},
        )
        byte_ids = {self._token_bytes[i]: i for i in ids if processor.is_byte(i)}
        if len(byte_ids) < 256:
            raise ValueError(
                "`model` must have a piece for each of the 256 bytes. Received: "
                f"{len(byte_ids)} of them. Train it with byte_fallback=True, or by "
                "SentencePieceTokenizer.train."
            )
        self._space_mark_ids = [byte_ids[bytes([b])] for b in SPACE_MARK.encode()]
        # Full-width "A" and runs of spaces are what normalization changes
        sample = "  a \n \uff21 "
        if self.decode(self.encode(sample)) != sample:
            raise ValueError(
                "`model` must keep text as it is. Received: a model that decodes "
                f"{sample!r} to {self.decode(self.encode(sample))!r}. Train it by "
                "SentencePieceTokenizer.train."
            )

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        model_type: Literal["bpe", "unigram"] = "bpe",
        character_coverage: float = 0.9995,
        progress: bool = True,
    ) -> Self:
        """Learn the pieces from a corpus.

        Args:
            texts: Any iterable of texts, read once; one `str` is one text.
            vocab_size: Number of tokens: `<unk>`, special tokens, 256 bytes, pieces.
                A small corpus may give fewer.
            special_tokens: Names of special tokens.
            model_type: `"bpe"` merges pairs, `"unigram"` prunes a large vocabulary.
            character_coverage: Share of the corpus whose characters get pieces of
                their own; rarer characters become bytes.
            progress: Whether to show progress on stderr.

        Returns:
            A `SentencePieceTokenizer`.

        Raises:
            ValueError: The corpus is empty, or `vocab_size` is too small for the
                characters in it.
        """
        from sentencepiece import SentencePieceTrainer

        check_choice("model_type", model_type, ("bpe", "unigram"))
        names = check_special_tokens(special_tokens)
        reason = f"<unk>, {len(names)} special tokens, 256 bytes and the space"
        check_vocab_size(vocab_size, len(names) + 258, reason)
        model = io.BytesIO()
        failures = []
        try:
            with read_corpus(texts, progress) as corpus:
                SentencePieceTrainer.train(
                    sentence_iterator=_sentences(corpus, failures),
                    model_writer=model,
                    model_type=model_type,
                    vocab_size=vocab_size,
                    character_coverage=character_coverage,
                    control_symbols=names,
                    **_OPTIONS,
                )
        except RuntimeError as error:
            if failures:
                raise failures[0] from None
            raise _training_error(error, vocab_size, character_coverage) from error
        return cls(model.getvalue())

    @classmethod
    def _from_content(cls, content):
        return cls(content)

    def _encode(self, text):
        first, *others = text.split(SPACE_MARK)
        ids = self._processor.encode(first)
        for part in others:
            ids += self._space_mark_ids + self._processor.encode(part)
        return ids

    def _encode_batch(self, texts):
        batch = self._processor.encode(texts, num_threads=-1)
        return [
            self._encode(text) if SPACE_MARK in text else ids
            for text, ids in zip(texts, batch, strict=True)
        ]


def _sentences(corpus, failures):
    """Cut texts into training sentences; note an error, which the library renames."""
    try:
        for text in corpus:
            yield from _SENTENCE.findall(text)
    except BaseException as error:
        failures.append(error)
        raise


def _training_error(error, vocab_size, character_coverage):
    """Say what the library's error means."""
    too_small = re.search(r"required_chars.*?\d+ vs (\d+)", str(error))
    if too_small:
        return ValueError(
            f"`vocab_size` must be at least {too_small[1]} for the characters of this "
            f"corpus. Received: vocab_size={vocab_size}, character_coverage="
            f"{character_coverage}. Raise vocab_size or lower character_coverage."
        )
    return ValueError(f"SentencePiece could not learn from this corpus: {error}")


def _piece_bytes(processor, token_id):
    piece = processor.id_to_piece(token_id)
    if processor.is_byte(token_id):
        return bytes([int(piece[3:5], 16)])  # <0xE2>
    if processor.is_unknown(token_id):
        return "\ufffd".encode()
    if processor.is_control(token_id):
        return piece.encode("utf-8")
    return piece.replace(SPACE_MARK, " ").encode("utf-8")
