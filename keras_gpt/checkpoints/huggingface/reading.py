"""Folders in Hugging Face's format, read."""

import re
from pathlib import Path
from typing import Any

from keras_gpt.checkpoints.checkpoint import Checkpoint
from keras_gpt.checkpoints.huggingface.config import names_of, read_config
from keras_gpt.checkpoints.huggingface.safetensors import read_tensors
from keras_gpt.files import read_json
from keras_gpt.tokenizers import (
    BytePairTokenizer,
    ChatTemplate,
    SentencePieceTokenizer,
)

# Of generation, by the names that are ours too
CONTROLS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
TASKS = "keras_gpt_tasks"  # in `config.json`: other libraries pass over it
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_huggingface(folder: str | Path, name: str | None = None) -> Checkpoint:
    """Look at a folder in Hugging Face's format.

    Args:
        folder: Holds `config.json`, safetensors and a tokenizer.
        name: Where it came from. Defaults to the folder.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The architecture isn't supported, or a file is damaged.
    """
    folder = Path(folder)
    settings = _read_settings(folder / "config.json")
    config = read_config(settings)
    family = settings["model_type"]
    tensors = read_tensors(folder)
    if family == "gpt2":
        # some files have the prefix, some don't
        prefix = re.compile(r"^(?!transformer\.|lm_head\.)")
        tensors = {prefix.sub("transformer.", key): t for key, t in tensors.items()}
    stop_ids, defaults = _read_generation(folder, settings, config.vocab_size)
    source = {
        "format": "Hugging Face",
        "name": name or settings.get("_name_or_path") or str(folder),
        "architecture": family,
        "license": _read_license(folder),
        "stored_dtype": settings.get("dtype") or settings.get("torch_dtype"),
    }
    return Checkpoint(
        config=config,
        names=names_of(family),
        shapes={key: tensor.shape for key, tensor in tensors.items()},
        read_rows=lambda key: tensors[key].read_rows(),
        tokenizer=_read_tokenizer(folder),
        chat_template=read_chat_template(folder),
        stop_ids=stop_ids,
        generation_defaults=defaults,
        source={key: value for key, value in source.items() if value},
        tasks=settings.get(TASKS, {}),
    )


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return settings


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} isn't text ({error.reason}).") from error


def _read_tokenizer(folder):
    if (folder / "tokenizer.json").is_file():
        return BytePairTokenizer(_read_text(folder / "tokenizer.json"))
    if (folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer((folder / "tokenizer.model").read_bytes())
    raise FileNotFoundError(
        f"There is no tokenizer in {folder}, neither tokenizer.json nor .model. Save "
        "the model's there with Transformers."
    )


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """How the model of a folder wants messages written, if it says."""
    path = folder / "tokenizer_config.json"
    settings = _read_settings(path)
    # names that a template may use
    tokens = _read_settings(folder / "special_tokens_map.json") | settings
    special = {}
    for name in SPECIAL_TOKENS:
        token = tokens.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[name] = token
    template = settings.get("chat_template")
    if isinstance(template, list) and all(isinstance(t, dict) for t in template):
        named = {str(item.get("name")): item.get("template") for item in template}
        template = named.get("default")
    if (folder / "chat_template.jinja").is_file():
        template = _read_text(folder / "chat_template.jinja")
    if template is None:
        return None
    if not isinstance(template, str):
        raise ValueError(f"{path} has a 'chat_template' that is no text.")
    return ChatTemplate(template, special)


def _read_generation(folder, settings, vocab_size):
    """Ids that end an answer, and controls that the makers recommend."""
    path = folder / "generation_config.json"
    generation = _read_settings(path)
    stop = generation.get("eos_token_id", settings.get("eos_token_id"))
    stop = stop if isinstance(stop, list) else [] if stop is None else [stop]
    if not all(isinstance(i, int) for i in stop):
        raise ValueError(f"{folder} has an eos_token_id that is none: {stop!r:.80}.")
    stop_ids = tuple(i for i in stop if 0 <= i < vocab_size)
    if not generation.get("do_sample", False):
        return stop_ids, {}
    defaults = {name: generation[name] for name in CONTROLS if generation.get(name)}
    for name, value in defaults.items():
        if not isinstance(value, int | float):
            raise ValueError(f"{path} has a {name} that is no number: {value!r:.80}.")
    return stop_ids, {"top_k": None, **defaults}


def _read_license(folder) -> str | None:
    """What the model card's first lines say of the licence."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    head = card.read_text("utf-8", errors="replace")[:10_000]
    found = re.match(r"---\n.*?^license: *['\"]?([^\n'\"]+)", head, re.DOTALL | re.M)
    return found[1].strip() if found else None
