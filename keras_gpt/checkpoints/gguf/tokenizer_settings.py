"""From a tokenizer and a chat template to the settings in a GGUF file."""

import json
import re
from typing import Any

from keras_gpt.checkpoints.gguf import tokenizer as reading
from keras_gpt.tokenizers import BytePairTokenizer
from keras_gpt.tokenizers.rules import PRE_TOKENIZERS, WHOLE_WORDS

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def tokenizer_settings(lm: Any) -> dict[str, Any]:
    """The settings from which `tokenizer_from_gguf` makes a model's tokenizer.

    Args:
        lm: A `keras_gpt.LanguageModel`. Its chat template goes into the file too, if
            there is one, and the first three of its `stop_ids`. The vocabulary is
            filled up to the model's.

    Raises:
        ValueError: It isn't a `BytePairTokenizer`, or llama.cpp has no such tokenizer.
    """
    tokenizer = lm.tokenizer
    if not isinstance(tokenizer, BytePairTokenizer):
        raise ValueError(
            "A GGUF file needs a BytePairTokenizer. Received: "
            f"tokenizer={type(tokenizer).__name__}. Write Hugging Face's format."
        )
    content = json.loads(tokenizer.to_json())
    is_byte_level = not content["model"].get("byte_fallback")
    tokens, types = _tokens(content, lm.model.config.vocab_size)
    settings = {
        "tokenizer.ggml.model": "gpt2" if is_byte_level else "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_bos_token": bool(tokenizer.start_ids),
        **_special_ids(lm),
    }
    if lm.chat_template is not None:
        settings["tokenizer.chat_template"] = lm.chat_template.template
    merges = [
        tuple(merge.split(" ") if isinstance(merge, str) else merge)
        for merge in content["model"]["merges"]
    ]
    if not merges:
        raise ValueError(
            "A GGUF file needs a tokenizer with merges. Received: one with none. Train "
            "it on more text, or with a larger vocab_size."
        )
    if not is_byte_level:
        return _with_scores(settings, content, merges)
    settings["tokenizer.ggml.pre"] = _rule(content)
    settings["tokenizer.ggml.merges"] = [" ".join(merge) for merge in merges]
    return settings


def _tokens(content, vocab_size):
    """All tokens by id, and their kinds."""
    model = content["model"]
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [reading.UNUSED] * vocab_size
    for token, i in model["vocab"].items():
        is_byte = model.get("byte_fallback") and _BYTE.fullmatch(token)
        tokens[i], types[i] = token, reading.BYTE if is_byte else reading.NORMAL
    for token in content["added_tokens"]:
        kind = reading.CONTROL if token["special"] else reading.USER_DEFINED
        if token["content"] == model.get("unk_token"):
            kind = reading.UNKNOWN
        tokens[token["id"]], types[token["id"]] = token["content"], kind
    return tokens, types


def _special_ids(lm):
    """Ids of the tokens that have a role."""
    named = {} if lm.chat_template is None else lm.chat_template.special_tokens
    known, keys = lm.tokenizer.special_tokens, reading.SPECIAL_TOKENS
    ids = {key: known.get(named.get(name)) for name, key in keys.items()}
    bos, eos = keys["bos_token"], keys["eos_token"]
    if lm.tokenizer.start_ids:
        ids[bos] = lm.tokenizer.start_ids[0]
    rest = [i for i in lm.stop_ids if i != ids[eos]]
    if ids[eos] is None and rest:
        ids[eos] = rest.pop(0)
    ids |= dict(zip(reading.STOP_IDS[1:], rest, strict=False))
    if lm.chat_template is None and ids[bos] is None:
        ids[bos] = ids[eos]  # llama.cpp would take token 11
    return {key: i for key, i in ids.items() if i is not None}


def _rule(content):
    """llama.cpp's name of how a `tokenizer.json` cuts text into words."""
    model, normalizer = content["model"], content["normalizer"]
    cut = _without_defaults(content["pre_tokenizer"])
    for rule, pre_tokenizer in PRE_TOKENIZERS.items():
        if (
            cut == _without_defaults(pre_tokenizer)
            and normalizer == reading.normalizer_of(rule)
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
    last = len(merges)
    scores = [-float(ranks.get(token, last + i)) for i, token in enumerate(tokens)]
    settings["tokenizer.ggml.scores"] = scores
    for adds_space in (True, False):
        settings["tokenizer.ggml.add_space_prefix"] = adds_space
        again = reading.tokenizer_content(settings)
        parts = ("normalizer", "pre_tokenizer", "decoder")
        is_same = all(again[part] == content[part] for part in parts)
        if is_same and list(map(tuple, again["model"]["merges"])) == merges:
            return settings
    raise ValueError(
        "llama.cpp has no tokenizer like this one, whose merges aren't those of a "
        "SentencePiece model, or which puts spaces elsewhere. Received: normalizer="
        f"{content['normalizer']}, pre_tokenizer={content['pre_tokenizer']}. Write "
        "Hugging Face's format."
    )
