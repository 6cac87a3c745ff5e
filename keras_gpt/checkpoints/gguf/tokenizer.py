"""The tokenizer and the chat template in a GGUF file.

It holds the vocabulary and the name of the rule that cuts text into words; these make a
`tokenizer.json`.

References:
    - [llama-vocab.cpp](
      https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp)
"""

import json
from collections.abc import Mapping
from typing import Any

from keras_gpt.config import check_choice
from keras_gpt.tokenizers import BytePairTokenizer, ChatTemplate, Tokenizer
from keras_gpt.tokenizers.base import SPACE_MARK
from keras_gpt.tokenizers.rules import PRE_TOKENIZERS, WHOLE_WORDS, byte_level

# Kinds of tokens, as `gguf.TokenType`
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# What a chat template calls them, and the settings with their ids
SPECIAL_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
STOP_IDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


def tokenizer_from_gguf(settings: Mapping[str, Any]) -> Tokenizer | None:
    """Make the tokenizer of a GGUF file.

    Args:
        settings: The file's settings by key.

    Returns:
        A tokenizer, `None` if the file has none.

    Raises:
        ValueError: The kind of tokenizer isn't supported, or its parts don't fit.
    """
    if settings.get("tokenizer.ggml.model", "none") == "none":
        return None
    content = json.dumps(tokenizer_content(settings), ensure_ascii=False)
    try:
        return BytePairTokenizer(content)
    except ValueError as error:
        raise ValueError(
            f"The tokenizer's merges don't fit its vocabulary ({error.__cause__}). "
            "Download the file again."
        ) from error


def tokenizer_content(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `tokenizer.json` that does what a GGUF file says.

    Raises:
        ValueError: As of `tokenizer_from_gguf`.
    """
    model = settings.get("tokenizer.ggml.model")
    check_choice("tokenizer.ggml.model", model, ("gpt2", "llama"))
    tokens = _strings(settings, "tokenizer.ggml.tokens")
    types = settings.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ValueError("tokenizer.ggml.token_type isn't one number for each token.")
    # converters fill up to the size of the embeddings
    while types and types[-1] == UNUSED:
        tokens, types = tokens[:-1], types[:-1]
    make = _byte_level_parts if model == "gpt2" else _sentence_piece_parts
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added_tokens = [
        {"id": i, "content": token, **flags, "special": kind != USER_DEFINED}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    head = {"version": "1.0", "truncation": None, "padding": None}
    return {**head, "added_tokens": added_tokens, **make(settings, tokens, types)}


def chat_template_from_gguf(settings: Mapping[str, Any]) -> ChatTemplate | None:
    """Make the chat template of a GGUF file, `None` if it has none.

    Raises:
        ValueError: The template isn't Jinja.
    """
    template = settings.get("tokenizer.chat_template")
    if not isinstance(template, str):
        return None
    tokens = settings.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    ids = {name: settings.get(key) for name, key in SPECIAL_TOKENS.items()}
    named = {name: tokens[i] for name, i in ids.items() if _is_id(i, tokens)}
    return ChatTemplate(template, named)


def _byte_level_parts(settings, tokens, types):
    """What is particular to byte-level merges, as in GPT-2."""
    del types
    rule = settings.get("tokenizer.ggml.pre")
    if rule is None and settings.get("general.architecture") == "gpt2":
        rule = "gpt-2"  # files from before May 2024 don't say
    check_choice("tokenizer.ggml.pre", rule, tuple(PRE_TOKENIZERS))
    is_whole = rule in WHOLE_WORDS
    return {
        "normalizer": normalizer_of(rule),
        "pre_tokenizer": PRE_TOKENIZERS[rule],
        "post_processor": _post_processor(settings, tokens, adds_start=is_whole),
        "decoder": byte_level(True),
        "model": _model(tokens, _merges(settings), ignore_merges=is_whole),
    }


def normalizer_of(rule: str) -> dict[str, Any] | None:
    """The normalizer that goes with a name in `PRE_TOKENIZERS`."""
    # Qwen's own tokenizer.json has it, llama.cpp leaves it out
    return {"type": "NFC"} if rule == "qwen2" else None


def _sentence_piece_parts(settings, tokens, types):
    """What is particular to SentencePiece's merges, as in Llama 2 and Mistral."""
    space, mark = {"String": " "}, {"String": SPACE_MARK}
    normalizers = [{"type": "Replace", "pattern": space, "content": SPACE_MARK}]
    decoders = [
        {"type": "Replace", "pattern": mark, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if settings.get("tokenizer.ggml.add_space_prefix", True):
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE_MARK})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = settings.get("tokenizer.ggml.unknown_token_id", 0)
    options = {
        "unk_token": tokens[unknown] if _is_id(unknown, tokens) else None,
        "fuse_unk": True,
        "byte_fallback": True,
    }
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": _post_processor(settings, tokens, adds_start=True),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _model(tokens, _merges_by_score(settings, tokens, types), **options),
    }


def _model(tokens, merges, **options):
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    flags = ("fuse_unk", "byte_fallback", "ignore_merges")
    return {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token", *affixes)),
        **dict.fromkeys(flags, False),
        **options,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": merges,
    }


def _post_processor(settings, tokens, adds_start):
    """Put the start token in front, if the file wants it."""
    start = settings.get("tokenizer.ggml.bos_token_id")
    wants_it = settings.get("tokenizer.ggml.add_bos_token", adds_start)
    if not wants_it or not _is_id(start, tokens):
        return None
    token = tokens[start]
    first, second = (
        [
            {"SpecialToken": {"id": token, "type_id": number}},
            {"Sequence": {"id": text, "type_id": number}},
        ]
        for number, text in enumerate("AB")
    )
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {token: {"id": token, "ids": [start], "tokens": [token]}},
    }


def _merges(settings):
    """Pairs of pieces, the most frequent first; a piece can't begin with a space."""
    merges = []
    for merge in _strings(settings, "tokenizer.ggml.merges"):
        left, space, right = merge[1:].partition(" ")
        if not (space and right):
            raise ValueError(f"tokenizer.ggml.merges has {merge!r}, which is no pair.")
        merges.append([merge[0] + left, right])
    return merges


def _merges_by_score(settings, tokens, types):
    """All pairs of pieces that are a piece, the best score first.

    In the order of Transformers' `generate_merges`.
    """
    scores = settings.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(tokens):
        raise ValueError("tokenizer.ggml.scores isn't one number for each token.")
    ids = {token: i for i, token in enumerate(tokens) if types[i] == NORMAL}
    merges = []
    for token, token_id in ids.items():
        cuts = [(token[:n], token[n:]) for n in range(1, len(token))]
        pairs = [(ids[a], ids[b], a, b) for a, b in cuts if a in ids and b in ids]
        merges += [(scores[token_id], a, b) for _, _, a, b in sorted(pairs)]
    merges.sort(key=lambda merge: (merge[0], *map(len, merge[1:])), reverse=True)
    return [[left, right] for _, left, right in merges]


def _strings(settings, key):
    value = settings.get(key)
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{key} isn't a list of texts. Download the file again.")
    return value


def _is_id(value, tokens):
    return isinstance(value, int) and 0 <= value < len(tokens)
