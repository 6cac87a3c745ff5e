"""Byte-pair encoding as TensorFlow operations, id by id as the `tokenizers` library.

Text is cut into words by operations on its code points, and SentencePiece's operation
merges the pairs within each word. It merges by the score of the *piece*, the library by
the rank of the *pair*. Both give the same, for this reason: until a merge crosses the
bounds of a substring, the substring evolves as it does when encoded alone. So two
symbols that spell a token can only meet if the token, encoded alone, comes from these
two in its last merge. That merge's rank makes the token's score; a token that encoded
alone doesn't give itself can never arise, and is no piece.

References:
    - [SentencePiece's merges](
      https://github.com/google/sentencepiece/blob/master/src/bpe_model.cc)
    - [The library's](
      https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/models/bpe)
"""

# Axes: b row of the batch, w word of all rows

import itertools
import json
from collections import defaultdict
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from keras_gpt.export.word_ops import NOTHING, ByteWords, check_supported
from keras_gpt.quiet import quiet_tensorflow
from keras_gpt.tokenizers import BytePairTokenizer
from keras_gpt.tokenizers.base import SPACE_MARK

# float32, the type of a piece's score, has every integer below it
MOST_MERGES = 1 << 24


class BytePairEncoder(tf.Module):
    """Text to ragged ids, as `BytePairTokenizer.encode`.

    Args:
        tokenizer: A byte-level tokenizer with GPT-2's, SmolLM2's, Llama 3's or Qwen2's
            rule for words, or one as Llama 2's, with bytes for unknown characters.

    Raises:
        ValueError: It has a part that these operations can't do alike.
    """

    def __init__(self, tokenizer: BytePairTokenizer):
        super().__init__()
        content = _complete_content(tokenizer)
        _check_added_tokens(content["added_tokens"])
        model, normalizer = content["model"], content["normalizer"]
        if model["byte_fallback"] and content["pre_tokenizer"] is None:
            self.cut = MarkedText(normalizer)
            check_supported(
                not model["ignore_merges"], "ignore_merges", True, "with words only"
            )
            byte_names = {f"<0x{byte:02X}>" for byte in range(256)}
            has_all_bytes = byte_names <= model["vocab"].keys()
        else:
            check_supported(normalizer is None, "normalizer", normalizer, "none")
            alphabet = _alphabet(tokenizer, model["vocab"])
            self.cut = ByteWords(content["pre_tokenizer"], alphabet)
            byte_names = set()
            leaves_out = model["unk_token"] is None and not model["byte_fallback"]
            has_all_bytes = leaves_out or NOTHING not in alphabet
        if not has_all_bytes:
            raise ValueError(
                "The tokenizer can't be exported: its vocabulary has not all of the "
                "256 bytes, but another token in place of some. Train it with "
                "BytePairTokenizer.train."
            )
        with quiet_tensorflow(), tf.device("CPU:0"):
            self.pieces = tf_text.SentencepieceTokenizer(
                _piece_model(model, byte_names)
            )
        if model["ignore_merges"]:
            self._check_whole_words(tokenizer, model["vocab"])

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Encode valid UTF-8 `(b,)` to ragged ids `(b, None)`."""
        words = self.cut(text)  # (b, None)
        token_ids = self.pieces.tokenize(words.values)  # (w, None)
        return words.with_values(token_ids).merge_dims(1, 2)

    def _check_whole_words(self, tokenizer, vocabulary):
        """Check that merges give each word that is a token, as `ignore_merges` does."""
        texts = [tokenizer.token(token_id) for token_id in vocabulary.values()]
        ids = self(tf.constant(texts)).to_list()
        expected = tokenizer.encode_batch(texts)
        wrong = [t for t, a, b in zip(texts, ids, expected, strict=True) if a != b]
        if wrong:
            raise ValueError(
                "The tokenizer can't be exported: it has `ignore_merges`, and its "
                f"merges don't make the tokens {wrong[:5]}."
            )


class MarkedText(tf.Module):
    """A whole row is one word, with "▁" for spaces, as in Llama 2.

    Args:
        normalizer: The part of `tokenizer.json`.
    """

    def __init__(self, normalizer: dict[str, Any] | None):
        super().__init__()
        mark = {"type": "Prepend", "prepend": SPACE_MARK}
        space = {"String": " "}
        replace = {"type": "Replace", "pattern": space, "content": SPACE_MARK}
        steps = (normalizer or {}).get("normalizers", [normalizer])
        check_supported(
            steps in ([replace], [mark, replace]),
            "normalizer",
            normalizer,
            "Llama 2's, which replaces spaces by '▁' and may put one in front",
        )
        self.prefix = SPACE_MARK if mark in steps else ""

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Turn text `(b,)` into rows of one word `(b, None)`."""
        marked = self.prefix + tf.strings.regex_replace(text, " ", SPACE_MARK)
        words = tf.where(text == "", "", marked)  # an empty text gets no prefix
        return tf.RaggedTensor.from_tensor(words[:, tf.newaxis])


def _complete_content(tokenizer):
    """The tokenizer's JSON with all defaults filled in."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    content = HuggingFaceTokenizer.from_str(tokenizer.to_json()).to_str()
    return json.loads(content)


def _check_added_tokens(tokens):
    plain = [token["content"] for token in tokens if not token["special"]]
    check_supported(
        not plain,
        "added tokens that aren't special",
        plain,
        "special ones, which text can't spell",
    )


def _alphabet(tokenizer, vocabulary):
    """The code point that stands for each byte, `NOTHING` where there is none."""
    alphabet = [NOTHING] * 256
    for token, token_id in vocabulary.items():
        content = tokenizer.decode_bytes([token_id])
        if len(token) == len(content) == 1:
            alphabet[content[0]] = ord(token)
    return alphabet


def _piece_model(model, byte_names):
    """Make the SentencePiece model that merges alike; pieces have the tokens' ids."""
    from sentencepiece import sentencepiece_model_pb2 as messages

    kinds = messages.ModelProto.SentencePiece
    ranks = _last_ranks(model)
    check_supported(
        byte_names.isdisjoint(ranks), "merges", [*byte_names & ranks.keys()], "others"
    )
    proto = messages.ModelProto()
    proto.trainer_spec.model_type = messages.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = bool(byte_names)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = False
    tokens = {token_id: token for token, token_id in model["vocab"].items()}
    for token_id in range(max(tokens) + 1):
        token = tokens.get(token_id)
        if token in byte_names:
            proto.pieces.add(piece=token, score=0, type=kinds.BYTE)
        elif token in ranks or (token and len(token) == 1):
            rank = ranks.get(token, 0)
            proto.pieces.add(piece=token, score=-rank, type=kinds.NORMAL)
        else:  # a name with a space, which no word has
            name = f"unused {token_id}"
            proto.pieces.add(piece=name, score=0, type=kinds.CONTROL)
    proto.pieces.add(piece="unknown token", score=0, type=kinds.UNKNOWN)
    return proto.SerializeToString()


def _last_ranks(model):
    """Of each token that merges give: the rank of its last merge when encoded alone."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    _check_model(model)
    merges = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    ranks = {tuple(merge): rank for rank, merge in enumerate(merges)}
    candidates = defaultdict(list)
    for (left, right), rank in ranks.items():
        candidates[left + right].append(rank)
    bare = {"version": "1.0", "model": {**model, "ignore_merges": False}}
    library = HuggingFaceTokenizer.from_str(json.dumps(bare))
    tokens = list(candidates)
    encodings = library.encode_batch_fast(tokens)
    found = {}
    for token, encoding in zip(tokens, encodings, strict=True):
        if encoding.ids == [model["vocab"][token]]:
            one = candidates[token]
            found[token] = one[0] if len(one) == 1 else _last_rank(token, ranks)
    return found


def _last_rank(token, ranks):
    """The rank of the merge that ends the merging of a token's characters."""
    symbols, rank = list(token), None
    while len(symbols) > 1:
        pairs = itertools.pairwise(symbols)
        rank, place = min((ranks.get(p, MOST_MERGES), i) for i, p in enumerate(pairs))
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
    return rank


def _check_model(model):
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        check_supported(not model[name], name, model[name], "none")
    if len(model["merges"]) >= MOST_MERGES:
        raise ValueError(
            f"The tokenizer can't be exported: it has {len(model['merges']):,} merges. "
            f"Fewer than {MOST_MERGES:,} are supported."
        )
