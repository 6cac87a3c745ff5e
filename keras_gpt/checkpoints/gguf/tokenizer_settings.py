"""From a tokenizer and a chat template to the settings in a GGUF file."""

import json
import re
from collections.abc import Sequence
from typing import Any

from keras_gpt.checkpoints.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPECIAL_TOKENS,
    STOP_IDS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    normalizer_of,
    tokenizer_content,
)
from keras_gpt.tokenizers import BytePairTokenizer, ChatTemplate, Tokenizer
from keras_gpt.tokenizers.rules import PRE_TOKENIZERS, WHOLE_WORDS

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def tokenizer_settings(
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    stop_ids: Sequence[int],
    vocab_size: int,
) -> dict[str, Any]:
    """The settings from which `tokenizer_from_gguf` makes the tokenizer.

    Args:
        tokenizer: A `BytePairTokenizer`.
        chat_template: Goes into the file too, if there is one.
        stop_ids: Go into the file too, the first three.
        vocab_size: The model's, up to which the vocabulary is filled.

    Raises:
        ValueError: llama.cpp has no such tokenizer.
    """
    if not isinstance(tokenizer, BytePairTokenizer):
        raise ValueError(
            "A GGUF file needs a BytePairTokenizer. Received: "
            f"tokenizer={type(tokenizer).__name__}. Write Hugging Face's format, or "
            "train with a BytePairTokenizer."
        )
    content = json.loads(tokenizer.to_json())
    is_byte_level = not content["model"].get("byte_fallback")
    tokens, types = _tokens(content, vocab_size)
    settings = {
        "tokenizer.ggml.model": "gpt2" if is_byte_level else "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_bos_token": bool(tokenizer.start_ids),
        **_special_ids(tokenizer, chat_template, stop_ids),
    }
    if chat_template is not None:
        settings["tokenizer.chat_template"] = chat_template.template
    merges = [
        tuple(merge.split(" ") if isinstance(merge, str) else merge)
        for merge in content["model"]["merges"]
    ]
    if not merges:
        raise ValueError(
            "A GGUF file needs a tokenizer with merges. Received: one with none. Train "
            "it on more text, or with a larger vocab_size."
        )
    if is_byte_level:
        return {
            **settings,
            "tokenizer.ggml.pre": _rule(content),
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        }
    return _with_scores(settings, content, merges)


def _tokens(content, vocab_size):
    """All tokens by id, and their kinds."""
    model = content["model"]
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, i in model["vocab"].items():
        is_byte = model.get("byte_fallback") and _BYTE.fullmatch(token)
        tokens[i], types[i] = token, BYTE if is_byte else NORMAL
    for token in content["added_tokens"]:
        kind = CONTROL if token["special"] else USER_DEFINED
        kind = UNKNOWN if token["content"] == model.get("unk_token") else kind
        tokens[token["id"]], types[token["id"]] = token["content"], kind
    return tokens, types


def _special_ids(tokenizer, chat_template, stop_ids):
    """Ids of the tokens that have a role."""
    named = {} if chat_template is None else chat_template.special_tokens
    known = tokenizer.special_tokens
    ids = {key: known.get(named.get(name)) for name, key in SPECIAL_TOKENS.items()}
    bos, eos = SPECIAL_TOKENS["bos_token"], SPECIAL_TOKENS["eos_token"]
    if tokenizer.start_ids:
        ids[bos] = tokenizer.start_ids[0]
    rest = [i for i in stop_ids if i != ids[eos]]
    if ids[eos] is None and rest:
        ids[eos] = rest.pop(0)
    ids |= dict(zip(STOP_IDS[1:], rest, strict=False))
    if chat_template is None and ids[bos] is None:
        ids[bos] = ids[eos]  # llama.cpp would take token 11
    return {key: i for key, i in ids.items() if i is not None}


def _rule(content):
    """llama.cpp's name of how a `tokenizer.json` cuts text into words."""
    model, normalizer = content["model"], content["normalizer"]
    cut = _without_defaults(content["pre_tokenizer"])
    for rule, pre_tokenizer in PRE_TOKENIZERS.items():
        if (
            cut == _without_defaults(pre_tokenizer)
            and normalizer == normalizer_of(rule)
            and bool(model.get("ignore_merges")) == (rule in WHOLE_WORDS)
        ):
            return rule
    raise ValueError(
        "llama.cpp has no rule that cuts text into words like this tokenizer's. "
        f"Received: pre_tokenizer={cut}, normalizer={normalizer}, ignore_merges="
        f"{model.get('ignore_merges')}. Write Hugging Face's format."
    )


def _without_defaults(part):
    """The part without what doesn't change ids, and with what files leave out."""
    if isinstance(part, list):
        return [_without_defaults(item) for item in part]
    if not isinstance(part, dict):
        return part
    part = {key: _without_defaults(value) for key, value in part.items()}
    part.pop("trim_offsets", None)
    if part.get("type") == "ByteLevel":
        part.setdefault("use_regex", True)
    return part


def _with_scores(settings, content, merges):
    """Scores of the pieces in place of merges, as SentencePiece has them."""
    ranks = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    tokens = settings["tokenizer.ggml.tokens"]
    unknown = content["model"].get("unk_token")
    if unknown in tokens:
        settings["tokenizer.ggml.unknown_token_id"] = tokens.index(unknown)
    # pieces that nothing merges, single characters, come last
    scores = [
        -float(ranks.get(token, len(merges) + i)) for i, token in enumerate(tokens)
    ]
    for adds_space in (True, False):
        settings = {
            **settings,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.add_space_prefix": adds_space,
        }
        again = tokenizer_content(settings)
        if [tuple(merge) for merge in again["model"]["merges"]] == merges and all(
            again[name] == content[name]
            for name in ("normalizer", "pre_tokenizer", "decoder")
        ):
            return settings
    raise ValueError(
        "llama.cpp has no tokenizer like this one, whose merges aren't those of a "
        "SentencePiece model, or which puts spaces elsewhere. Received: normalizer="
        f"{content['normalizer']}, pre_tokenizer={content['pre_tokenizer']}. Write "
        "Hugging Face's format."
    )
