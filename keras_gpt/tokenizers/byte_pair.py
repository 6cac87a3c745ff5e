"""`BytePairTokenizer`: byte-pair encoding, as in GPT-2 and Llama."""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Self

from keras_gpt.tokenizers.base import END_OF_TEXT, SPACE_MARK, Tokenizer
from keras_gpt.tokenizers.inputs import (
    check_special_tokens,
    check_vocab_size,
    read_corpus,
)
from keras_gpt.tokenizers.rules import PRE_TOKENIZERS, byte_level, safe_cut

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte where there is no character
# The library is a quarter faster on texts of this length than on 100,000 characters
_PART_CHARACTERS = 4_000


class BytePairTokenizer(Tokenizer):
    """Byte-pair encoding over the `tokenizers` library.

    Text is cut into words by GPT-2's regular expression, and the bytes of each word
    are merged pair by pair. Every byte is a token, so any text can be encoded and
    decodes to itself. (The files of Llama 2 and Mistral merge characters, put a space
    in front of the text, which `decode` takes away, and give bytes only for what they
    don't know.)

    Args:
        tokenizer_json: The text of a `tokenizer.json` file in Hugging Face's format,
            with a decoder that is byte-level (GPT-2's, Llama 3's, SmolLM2's, Qwen's)
            or falls back to bytes (Llama 2's, Mistral's).

    Raises:
        ValueError: `tokenizer_json` is no such text.

    References:
        - [Language Models are Unsupervised Multitask Learners](
          https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf)
        - [tokenizers](https://huggingface.co/docs/tokenizers)

    Example:

    >>> from keras_gpt.tokenizers import BytePairTokenizer
    >>> texts = ["the cat sat", "the cat ran"]
    >>> tokenizer = BytePairTokenizer.train(texts, vocab_size=300, progress=False)
    >>> [tokenizer.token(i) for i in tokenizer.encode("the cats")]
    ['the', ' cat', 's']
    >>> tokenizer.decode(tokenizer.encode("any text: 你好"))
    'any text: 你好'
    """

    file_name = "tokenizer.json"

    def __init__(self, tokenizer_json: str):
        # Two that never change: one switch for all threads would let text of one forge
        # the special tokens that another allows. Neither file nor pickle keeps it.
        self._tokenizer = tokenizer = _parse(tokenizer_json)
        tokenizer.encode_special_tokens = True
        content = json.loads(tokenizer_json)
        decoder = content["decoder"] or {"type": None}
        types = {part["type"] for part in decoder.get("decoders", [decoder])}
        if not types & {"ByteLevel", "ByteFallback"}:
            raise ValueError(
                "`tokenizer_json` must have a ByteLevel or ByteFallback decoder. "
                f"Received: decoder={decoder['type']}. For a SentencePiece model use "
                "SentencePieceTokenizer."
            )
        added = tokenizer.get_added_tokens_decoder()
        super().__init__(
            tokenizer_json.encode("utf-8"),
            _token_bytes(tokenizer.get_vocab(), added, types),
            {token.content: i for i, token in sorted(added.items()) if token.special},
            _start_ids(tokenizer),
        )
        self._cuts_words = _cuts_words(content)
        self._adds_space = self.decode_bytes(self._encode("a")) == b" a"

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        min_frequency: int = 2,
        progress: bool = True,
    ) -> Self:
        """Learn the merges from a corpus.

        Args:
            texts: Any iterable of texts, read once; one `str` is one text.
            vocab_size: Number of tokens: 256 bytes, special tokens, and merges. A
                small corpus may give fewer.
            special_tokens: Names of special tokens; they get the last ids.
            min_frequency: How often a pair must occur to be merged.
            progress: Whether to show progress on stderr.

        Returns:
            A `BytePairTokenizer`.

        Raises:
            ValueError: The corpus is empty, `vocab_size` is too small, or a special
                token is also a word of the corpus.
        """
        from tokenizers import AddedToken, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as HuggingFaceTokenizer
        from tokenizers.decoders import ByteLevel as ByteLevelDecoder

        names = check_special_tokens(special_tokens)
        reason = f"256 bytes and {len(names)} special tokens"
        check_vocab_size(vocab_size, 256 + len(names), reason)
        tokenizer = HuggingFaceTokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = ByteLevelDecoder()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(names),
            min_frequency=min_frequency,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        with read_corpus(texts, progress) as corpus:
            tokenizer.train_from_iterator(corpus, trainer=trainer)
        # Added last: given to the trainer, a name that is also a word of the corpus
        # would share its id with that word, and text could forge it
        for name in names:
            if tokenizer.token_to_id(name) is not None:
                raise ValueError(
                    f"{name!r} in `special_tokens` is also a token that the corpus "
                    "gave. Choose a name that is no word, like '<|name|>'."
                )
            token = AddedToken(name, special=True, normalized=False)
            tokenizer.add_special_tokens([token])
        return cls(tokenizer.to_str())

    def to_json(self) -> str:
        """The text of its `tokenizer.json`."""
        return self._content.decode("utf-8")

    @classmethod
    def _from_content(cls, content):
        return cls(content.decode("utf-8"))

    def _encode(self, text):
        return self._encode_batch([text])[0]

    def _encode_batch(self, texts):
        if not self._cuts_words or max(map(len, texts), default=0) <= _PART_CHARACTERS:
            return _ids(self._tokenizer, texts)
        parts = [list(_parts(text)) for text in texts]
        ids = iter(_ids(self._tokenizer, [part for some in parts for part in some]))
        return [
            next(ids) if len(some) == 1 else list(chain(*islice(ids, len(some))))
            for some in parts
        ]

    @functools.cached_property
    def _special_tokenizer(self):
        return _parse(self.to_json())

    def _encode_special(self, text):
        # not part by part: what stands beside a special token can depend on it
        return _ids(self._special_tokenizer, [text])[0]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Turn token ids into text; see `Tokenizer.decode`."""
        text = super().decode(ids, skip_special_tokens)
        return text.removeprefix(" ") if self._adds_space else text


def _cuts_words(content):
    """Whether no token can reach across what `safe_cut` finds."""
    rule = content["pre_tokenizer"]
    # GPT-2's own file leaves `use_regex` out
    is_known = rule in PRE_TOKENIZERS.values() or (
        rule and {"use_regex": True, **rule} == byte_level(True)
    )
    is_special = all(token["special"] for token in content["added_tokens"])
    return bool(is_known) and is_special and content["normalizer"] is None


def _parts(text):
    """Cut a long text where its tokens stay the same."""
    start = 0
    while len(text) - start > _PART_CHARACTERS:
        cut = safe_cut(text, start, start + _PART_CHARACTERS)
        if cut is None:
            break
        yield text[start:cut]
        start = cut
    yield text[start:]


def _ids(tokenizer, texts):
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def _start_ids(tokenizer):
    """What the file's post-processor puts before a text."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a").ids
    places = range(len(full) - len(plain) + 1)
    start = next((n for n in places if full[n : n + len(plain)] == plain), 0)
    return full[:start]


def _parse(tokenizer_json):
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    try:
        tokenizer = HuggingFaceTokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            "`tokenizer_json` must be the text of a tokenizer.json file. Received: "
            f"{str(tokenizer_json)[:80]!r} ({error})."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _token_bytes(vocabulary, added, decoders):
    """What each id decodes to; added tokens are plain text."""
    byte_of = _byte_of_character() if "ByteLevel" in decoders else {}
    marks_spaces = not decoders.isdisjoint({"Replace", "Metaspace"})
    token_bytes = [b""] * (max(vocabulary.values()) + 1)
    for token, token_id in vocabulary.items():
        byte = _BYTE.fullmatch(token)
        if token_id in added:
            token_bytes[token_id] = token.encode("utf-8")
        elif byte_of and all(character in byte_of for character in token):
            token_bytes[token_id] = bytes(byte_of[character] for character in token)
        elif byte and not byte_of:
            token_bytes[token_id] = bytes([int(byte[1], 16)])
        else:
            text = token.replace(SPACE_MARK, " ") if marks_spaces else token
            token_bytes[token_id] = text.encode("utf-8")
    return token_bytes


def _byte_of_character():
    """GPT-2's alphabet: a printable character stands for each of the 256 bytes.

    Bytes that print in Latin-1 stand for themselves, the others are moved past 255.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(moved)
    }
