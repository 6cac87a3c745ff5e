"""A language model as a folder in Hugging Face's format."""

import dataclasses
import json
import math
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from keras_gpt.checkpoints.families import check_family, find_family
from keras_gpt.checkpoints.huggingface.config import names_of, write_config
from keras_gpt.checkpoints.huggingface.reading import CONTROLS, TASKS
from keras_gpt.checkpoints.huggingface.safetensors import INDEX
from keras_gpt.checkpoints.huggingface.tokenizer import write_tokenizer
from keras_gpt.checkpoints.parts import DTYPES, plain_weights
from keras_gpt.config import check_choice
from keras_gpt.files import atomic_update, write_json, write_safetensors
from keras_gpt.tokenizers import BytePairTokenizer
from keras_gpt.tokenizers.rules import QWEN2_WORDS

_SHARD_SIZE = 2 * 10**9  # bytes; what is held in memory beside the model
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
        OSError: The disk is full.
        ValueError: No family has the mathematics of the model, it is quantized or has
            adapters, or `dtype` isn't one.
    """
    directory = Path(directory)
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        # what is left of another model would be read as a part of this one
        raise FileExistsError(f"{directory} isn't an empty folder. Choose another.")
    config = lm.model.config
    dtype = dtype or lm.model.final_norm.weights[0].dtype
    check_choice("dtype", dtype, DTYPES)
    weights = plain_weights(lm.model)
    family = find_family(config)
    check_family(config, family, {}, "Transformers")
    class_name = f"{family.title()}ForCausalLM"
    if family == "gpt2":
        class_name = "GPT2LMHeadModel"
        config = dataclasses.replace(config, use_bias=True, query_key_value_bias=None)
    settings = {
        "architectures": [class_name],
        **write_config(config, family),
        **_token_ids(lm),
        "dtype": dtype,
        "torch_dtype": dtype,
        **({TASKS: lm.tasks} if lm.tasks else {}),
    }
    with atomic_update(directory) as folder:
        write_json(folder / "config.json", settings)
        write_usage(lm, folder)
        if family == "qwen2":
            _warn_of_words(lm.tokenizer)
        (folder / "README.md").write_text(_card(lm.source.get("license")), "utf-8")
        parts = list(names_of(family).parts(config))
        _write_tensors(weights, parts, np.dtype(dtype), folder)


def write_usage(lm: Any, folder: Path) -> None:
    """Write how a model is used: its tokenizer, chat template and defaults."""
    write_json(folder / "generation_config.json", _generation_settings(lm))
    write_tokenizer(lm.tokenizer, folder)
    write_json(folder / "tokenizer_config.json", _tokenizer_settings(lm))
    if lm.chat_template is not None:
        template = lm.chat_template.template
        (folder / "chat_template.jinja").write_text(template, "utf-8")


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
    names = {}
    end = tokenizer.end_of_text_id
    if end is not None:
        names = dict.fromkeys(("eos_token", "pad_token"), tokenizer.token(end))
    if tokenizer.start_ids:
        names["bos_token"] = tokenizer.token(tokenizer.start_ids[0])
    if lm.chat_template is not None:
        names |= lm.chat_template.special_tokens
    # Transformers would give an unknown name an id past the model's
    known = tokenizer.special_tokens
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": lm.model.config.context_length,
        "clean_up_tokenization_spaces": False,
        **{key: name for key, name in names.items() if name in known},
    }


def _warn_of_words(tokenizer):
    """Warn unless a tokenizer cuts text into words as Qwen's does."""
    is_byte_pair = isinstance(tokenizer, BytePairTokenizer)
    if not is_byte_pair or json.dumps(QWEN2_WORDS) not in tokenizer.to_json():
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


def _write_tensors(weights, parts, dtype, folder):
    """Write the weights in shards, so that only one of them is held in memory."""
    sizes = [math.prod(part.shape) * dtype.itemsize for part in parts]
    shards, room, weight_map = [], 0, {}
    for part, size in zip(parts, sizes, strict=True):
        if size > room:
            shards.append([])
            room = _SHARD_SIZE
        shards[-1].append(part)
        room -= size
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {part.name: part.take(weights, dtype) for part in shard}
        # Transformers asks for the metadata
        write_safetensors(folder / file, tensors, {"format": "pt"})
        # safetensors lets only the owner read
        shutil.copymode(folder / "config.json", folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        write_json(folder / INDEX, index)
