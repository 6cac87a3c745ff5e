"""A language model as a folder in Hugging Face's format."""

import dataclasses
import json
import math
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from keras import ops

from keras_gpt.checkpoints.checkpoint import (
    cast_weight,
    part_widths,
    plain_weights,
    weight_paths,
)
from keras_gpt.checkpoints.gguf_tokenizer import PRE_TOKENIZERS
from keras_gpt.checkpoints.huggingface_config import (
    CONTROLS,
    GPT2_FIELDS,
    LLAMA_FIELDS,
    ROTARY_SCALING,
)
from keras_gpt.checkpoints.huggingface_tokenizer import write_tokenizer
from keras_gpt.checkpoints.names import HUGGING_FACE_GPT2, HUGGING_FACE_LLAMA
from keras_gpt.config import GPTConfig, default_feed_forward_dimension, suggest
from keras_gpt.files import atomic_update, write_json, write_safetensors
from keras_gpt.tokenizers import BytePairTokenizer

_DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
_SHARD_SIZE = 2 * 10**9  # bytes; what is held in memory beside the model
_ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_GPT2_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
_CARD = """\
---
{license}library_name: transformers
pipeline_tag: text-generation
---

Written by [keras_gpt](https://pypi.org/project/keras-gpt/), which trained or loaded it.
Load it with `transformers.AutoModelForCausalLM.from_pretrained(folder)`, or with
`keras_gpt.LanguageModel.from_pretrained(folder)`.
"""


def write_huggingface(lm: Any, directory: str | Path, dtype: str | None = None) -> None:
    """Write a model and its tokenizer for Transformers, vLLM and llama.cpp.

    The files say that it is a GPT-2, Llama, Mistral, Qwen2 or Qwen3, whichever has its
    mathematics, and give the same logits. Three things differ there:

    - GPT-2 has biases everywhere: for a model without, they are written as zeros.
    - They know no `document_separator_id`: logits are the same for one document, which
      is what such a model was trained on, but not for several in a row.
    - A `CharacterTokenizer` or `SentencePieceTokenizer` is written as the
      `tokenizer.json` that gives the same ids, and is read back as a
      `BytePairTokenizer`. One of SentencePiece is kept in `tokenizer.model` too, and
      of model_type "unigram" only there.

    Transformers 5 cuts text as Qwen does for every model that is a Qwen2: one with
    another tokenizer gets a warning, and must be loaded with `PreTrainedTokenizerFast`.

    Args:
        lm: The `LanguageModel`.
        directory: The folder; there must be none, or nothing in it. When something
            fails, nothing is written.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`. Defaults to the weights' own.

    Raises:
        FileExistsError: The folder isn't empty.
        ValueError: No family has the mathematics of the model, or `dtype` isn't one.
    """
    directory = Path(directory)
    if directory.exists() and not (directory.is_dir() and _is_empty(directory)):
        # what is left of another model would be read as a part of this one
        raise FileExistsError(
            f"{directory} isn't an empty folder. Remove it or choose another name."
        )
    config = lm.model.config
    dtype = dtype or lm.model.final_norm.weights[0].dtype
    if dtype not in _DTYPES:
        raise ValueError(f"Unknown dtype. {suggest('dtype', dtype, _DTYPES)}")
    family = find_family(config)
    weights = plain_weights(lm.model)
    shards = _shards(weights, config, family, _DTYPES[dtype])
    settings = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        **(_gpt2_settings(config) if family == "gpt2" else _llama_settings(config)),
        **_token_ids(lm),
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    with atomic_update(directory) as folder:
        write_json(folder / "config.json", settings)
        write_json(folder / "generation_config.json", _generation_settings(lm))
        write_tokenizer(lm.tokenizer, folder)
        if family == "qwen2":
            _warn_of_words(lm.tokenizer)
        write_json(folder / "tokenizer_config.json", _tokenizer_settings(lm))
        if lm.chat_template is not None:
            template = lm.chat_template.template
            (folder / "chat_template.jinja").write_text(template, "utf-8")
        (folder / "README.md").write_text(_card(lm.source.get("license")), "utf-8")
        _write_tensors(weights, config, family, _DTYPES[dtype], shards, folder)


def _is_empty(directory):
    return next(directory.iterdir(), None) is None


def find_family(config: GPTConfig) -> str:
    """Name the `model_type` of Transformers whose mathematics a model has.

    Raises:
        ValueError: There is none; the setting that has no place is named.
    """
    if config.normalization == "layer_norm":
        return _check_gpt2(config)
    for name, value in (
        ("position_embedding", "rotary"),
        ("activation", "swiglu"),
    ):
        if getattr(config, name) != value:
            _refuse(config, name, f"with rms_norm it must be {value!r}")
    has_bias = config.use_bias
    has_qkv_bias = config.query_key_value_bias
    has_qkv_bias = has_bias if has_qkv_bias is None else has_qkv_bias
    if config.qk_norm:
        if has_bias or has_qkv_bias:
            name = "use_bias" if has_bias else "query_key_value_bias"
            _refuse(config, name, "with qk_norm there must be no biases")
        return "qwen3"
    if has_qkv_bias != has_bias:
        if has_bias:
            _refuse(config, "query_key_value_bias", "with use_bias it must be True")
        return "qwen2"
    if config.sliding_window is not None:
        if has_bias:
            _refuse(config, "use_bias", "with sliding_window it must be False")
        return "mistral"
    return "llama"


def _check_gpt2(config):
    if config.position_embedding != "learned":
        _refuse(config, "position_embedding", "with layer_norm it must be 'learned'")
    if config.activation not in _GPT2_ACTIVATIONS:
        _refuse(config, "activation", "with layer_norm it must be gelu or gelu_tanh")
    if config.qk_norm:
        _refuse(config, "qk_norm", "with layer_norm it must be False")
    if config.sliding_window is not None:
        _refuse(config, "sliding_window", "with layer_norm it must be None")
    for name, value in (
        ("num_kv_heads", config.num_heads),
        ("attention_dimension", config.embedding_dimension),
    ):
        if getattr(config, name) not in (None, value):
            _refuse(config, name, f"with layer_norm it must be {value}")
    return "gpt2"


def _refuse(config, name, reason):
    raise ValueError(
        "No architecture of Transformers has the mathematics of this model. Received: "
        f"{name}={getattr(config, name)!r} ({reason}). Use `save`, or `export`."
    )


def _gpt2_settings(config):
    return {
        **{theirs: getattr(config, ours) for theirs, ours in GPT2_FIELDS.items()},
        "n_inner": config.feed_forward_dimension,
        "activation_function": _GPT2_ACTIVATIONS[config.activation],
        "layer_norm_epsilon": config.norm_epsilon,
        **dict.fromkeys(
            ("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout_rate
        ),
    }


def _llama_settings(config):
    has_bias = config.use_bias
    hidden = config.feed_forward_dimension or default_feed_forward_dimension(
        config.embedding_dimension, config.activation
    )
    settings = {
        **{theirs: getattr(config, ours) for theirs, ours in LLAMA_FIELDS.items()},
        "num_key_value_heads": config.num_kv_heads or config.num_heads,
        "head_dim": config.head_dimension,
        "intermediate_size": hidden,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "attention_bias": has_bias,
        "mlp_bias": has_bias,
        **_rotary_settings(config),
        # of Mistral; then also what Qwen needs to use it in every layer
        "sliding_window": config.sliding_window,
    }
    if config.sliding_window is not None:
        settings |= {"use_sliding_window": True, "max_window_layers": 0}
    return settings


def _rotary_settings(config):
    """The new way to write them, and the old one of Transformers 4 and llama.cpp."""
    scaling = config.rotary_scaling
    base = {"rope_theta": config.rotary_base}
    rotary = {"rope_type": "default"}
    if scaling is not None:
        rotary = {"rope_type": scaling["type"]}
        rotary |= {
            theirs: scaling[ours]
            for theirs, ours in ROTARY_SCALING.items()
            if ours in scaling
        }
    settings = {**base, "rope_parameters": {**base, **rotary}}
    return settings if scaling is None else {**settings, "rope_scaling": rotary}


def _token_ids(lm):
    """Of the whole text, as Transformers wants them in `config.json`."""
    start = lm.tokenizer.start_ids
    stop = list(lm.stop_ids)
    return {
        "bos_token_id": start[0] if start else None,
        "eos_token_id": stop[0] if len(stop) == 1 else stop or None,
        "pad_token_id": lm.tokenizer.end_of_text_id,
    }


def _generation_settings(lm):
    settings = _token_ids(lm)
    defaults = {name: lm.generation_defaults.get(name) for name in CONTROLS}
    if not any(value is not None for value in defaults.values()):
        return settings
    if defaults["temperature"] == 0:
        return {**settings, "do_sample": False}
    # unlike ours, their default is 50; 0 is none
    defaults["top_k"] = defaults["top_k"] or 0
    chosen = {name: value for name, value in defaults.items() if value is not None}
    return {**settings, "do_sample": True, **chosen}


def _tokenizer_settings(lm):
    tokenizer = lm.tokenizer
    special_tokens = tokenizer.special_tokens
    names = {}
    end = tokenizer.end_of_text_id
    if end is not None:
        names = dict.fromkeys(("eos_token", "pad_token"), tokenizer.token(end))
    if tokenizer.start_ids:
        names["bos_token"] = tokenizer.token(tokenizer.start_ids[0])
    if lm.chat_template is not None:
        names |= lm.chat_template.special_tokens
    # Transformers would give an unknown name an id past the model's
    names = {key: name for key, name in names.items() if name in special_tokens}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": lm.model.config.context_length,
        "clean_up_tokenization_spaces": False,
        **names,
    }


def _warn_of_words(tokenizer):
    """Warn unless a tokenizer cuts text into words as Qwen's does."""
    [cut, _] = PRE_TOKENIZERS["qwen2"]["pretokenizers"]
    pattern = json.dumps(cut["pattern"]["Regex"])
    is_byte_pair = isinstance(tokenizer, BytePairTokenizer)
    if not is_byte_pair or pattern not in tokenizer.to_json():
        warnings.warn(
            "This model is written as a Qwen2, and AutoTokenizer of Transformers 5 "
            "cuts text as Qwen does for each of them. Load its tokenizer with "
            "PreTrainedTokenizerFast.from_pretrained, or the ids will be others.",
            stacklevel=4,
        )


def _card(license_name):
    """The text of the model card."""
    # the name may come from any file
    known = license_name and re.fullmatch(r"[\w. +-]{1,50}", license_name)
    return _CARD.format(license=f"license: {license_name}\n" if known else "")


def _write_tensors(weights, config, family, dtype, shards, folder):
    """Write the weights in shards, so that only one of them is held in memory."""
    weight_map, total = {}, 0
    for number, paths in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for path in paths:
            tensors |= _tensors(weights, config, family, path, dtype)
        # Transformers asks for the metadata
        write_safetensors(folder / file, tensors, {"format": "pt"})
        # safetensors lets only the owner read
        shutil.copymode(folder / "config.json", folder / file)
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def _shards(weights, config, family, dtype):
    """Our paths of the weights, in lists of at most `_SHARD_SIZE` bytes."""
    if family == "gpt2":
        fields = {"use_bias": True, "query_key_value_bias": None}
        config = dataclasses.replace(config, **fields)
    shards, room = [], 0
    for path in weight_paths(config):
        size = math.prod(_find_shape(weights, path)) * np.dtype(dtype).itemsize
        if not shards or size > room:
            shards.append([])
            room = _SHARD_SIZE
        shards[-1].append(path)
        room -= size
    return shards


def _find_shape(weights, path):
    """The shape of a weight, also of a bias that the model doesn't have."""
    if path in weights:
        return tuple(weights[path].shape)
    beside = path.replace("/beta", "/gamma").replace("/bias", "/kernel")
    return tuple(weights[beside].shape)[-1:]


def _tensors(weights, config, family, path, dtype):
    """What Transformers calls the parts of a weight, and their values."""
    names = HUGGING_FACE_GPT2 if family == "gpt2" else HUGGING_FACE_LLAMA
    if path in weights:
        values = cast_weight(path, ops.convert_to_numpy(weights[path]), dtype)
    else:
        values = np.zeros(_find_shape(weights, path), dtype)
    theirs = names.find(path)
    ends = np.cumsum(part_widths(config, values.shape[-1], len(theirs)))
    parts = np.split(values, ends[:-1], axis=-1)
    if names.is_transposed(path):
        parts = [part.T for part in parts]
    # as Transformers names them itself
    prefix = "transformer." if family == "gpt2" else ""
    return {
        name if name == "lm_head.weight" else prefix + name: np.ascontiguousarray(part)
        for name, part in zip(theirs, parts, strict=True)
    }
