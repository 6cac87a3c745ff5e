"""Folders in Hugging Face's format, on disk or on the Hub."""

import re
from pathlib import Path
from typing import Any

from keras_gpt.checkpoints.checkpoint import Checkpoint
from keras_gpt.checkpoints.huggingface_config import CONTROLS, read_config
from keras_gpt.files import read_json
from keras_gpt.tokenizers import (
    BytePairTokenizer,
    ChatTemplate,
    SentencePieceTokenizer,
    Tokenizer,
)

HUB = "hf://"
_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja", "README.md")
_DTYPES = ("F64", "F32", "F16", "BF16")


def download(
    name: str, *, revision: str | None = None, token: str | None = None
) -> Path:
    """Bring a model from the Hugging Face Hub into its cache.

    Args:
        name: `"owner/name"`, or `"owner/name/file.gguf"`.
        revision: Branch, tag or commit.
        token: Access token.

    Returns:
        The folder, or the file.

    Raises:
        ValueError: The name is none, or the model is gated or private.
        FileNotFoundError: There is no such model, or no connection.
    """
    import huggingface_hub
    from huggingface_hub import errors

    owner_name, _, file = re.sub(r"^([^/]+/[^/]+)/?", r"\1\n", name).partition("\n")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", owner_name):
        raise ValueError(
            f"A model on the Hub is named hf://owner/name. Received: {HUB}{name}."
        )
    try:
        if file:
            return Path(
                huggingface_hub.hf_hub_download(
                    owner_name, file, revision=revision, token=token
                )
            )
        return Path(
            huggingface_hub.snapshot_download(
                owner_name, revision=revision, token=token, allow_patterns=_FILES
            )
        )
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{HUB}{name} is gated: accept its licence on its page, then log in with "
            "`hf auth login` or give `token`."
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{HUB}{name} can't be downloaded ({str(error).splitlines()[0]}). Check "
            "the name, the connection and, for a private model, `token`."
        ) from error


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
    config, names = read_config(settings)
    files = _tensor_files(folder)

    def read(tensor):
        # opened for each tensor: pages that were read would stay in memory
        path, stored = files[tensor]
        with _open(path) as file:
            dtype = file.get_slice(stored).get_dtype()
            if dtype not in _DTYPES:
                raise ValueError(
                    f"{tensor} is stored as {dtype}, which isn't supported: the model "
                    "is quantized. Load the original weights, or a GGUF file."
                )
            return file.get_tensor(stored)

    if config.num_layers > len(files):
        raise ValueError(
            f"{folder / 'config.json'} promises {config.num_layers} layers; there are "
            f"only {len(files)} tensors. The files don't belong together."
        )
    special_tokens = _special_tokens(folder)
    stop_ids, defaults = _generation(folder, settings, config.vocab_size)
    source = {
        "format": "Hugging Face",
        "name": name or settings.get("_name_or_path") or str(folder),
        "architecture": settings["model_type"],
        "license": _license(folder),
        "stored_dtype": settings.get("dtype") or settings.get("torch_dtype"),
    }
    return Checkpoint(
        config=config,
        names=names,
        read=read,
        available=files,
        tokenizer=_read_tokenizer(folder),
        chat_template=_chat_template(folder, special_tokens),
        stop_ids=stop_ids,
        generation_defaults=defaults,
        source={key: value for key, value in source.items() if value},
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


def _tensor_files(folder):
    """For each tensor its file and its name there."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_settings(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index} lacks 'weight_map'. Download it again.")
        for file in weight_map.values():
            _check_shard(folder, index, file)
        _check_promises(folder, weight_map)
    elif (folder / "model.safetensors").is_file():
        weight_map = dict.fromkeys(
            _tensor_names(folder / "model.safetensors"), "model.safetensors"
        )
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise ValueError(
            f"{folder} has its weights in pickle files only (.bin), which can run any "
            "program while they are read. Use a safetensors version of the model."
        )
    else:
        raise FileNotFoundError(
            f"There are no weights in {folder}: model.safetensors is missing."
        )
    # GPT-2's files have the prefix or don't
    return {
        re.sub(r"^transformer\.", "", name): (folder / file, name)
        for name, file in weight_map.items()
    }


def _check_shard(folder, index, file):
    is_name = isinstance(file, str) and Path(file).name == file
    if not is_name or not file.endswith(".safetensors"):
        raise ValueError(
            f"{index} names a file outside its folder, {file!r}, which isn't read. "
            "Don't use this model."
        )
    if not (folder / file).is_file():
        raise FileNotFoundError(
            f"The shard {folder / file} is missing. Download the model again."
        )


def _check_promises(folder, weight_map):
    """Raise unless each shard holds what the index says."""
    for file in set(weight_map.values()):
        held = set(_tensor_names(folder / file))
        lacking = [n for n, f in weight_map.items() if f == file and n not in held]
        if lacking:
            raise ValueError(
                f"{folder / file} lacks {lacking[0]}, which its index promises. "
                "Download both again."
            )


def _open(path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} isn't a whole safetensors file ({error}). Download it again."
        ) from error


def _tensor_names(path) -> list[str]:
    with _open(path) as file:
        return list(file.keys())


def _read_tokenizer(folder) -> Tokenizer | None:
    if (folder / "tokenizer.json").is_file():
        return BytePairTokenizer(_read_text(folder / "tokenizer.json"))
    if (folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer((folder / "tokenizer.model").read_bytes())
    raise FileNotFoundError(
        f"There is no tokenizer in {folder}: neither tokenizer.json nor "
        "tokenizer.model. Save the model's tokenizer there with Transformers."
    )


def _special_tokens(folder) -> dict[str, str]:
    """Names that a chat template may use, such as `eos_token`."""
    settings = {
        **_read_settings(folder / "special_tokens_map.json"),
        **_read_settings(folder / "tokenizer_config.json"),
    }
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            tokens[name] = token
    return tokens


def _chat_template(folder, special_tokens) -> ChatTemplate | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return ChatTemplate(_read_text(path), special_tokens)
    path = folder / "tokenizer_config.json"
    template = _read_settings(path).get("chat_template")
    if isinstance(template, list) and all(isinstance(t, dict) for t in template):
        named = {str(item.get("name")): item.get("template") for item in template}
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str):
        raise ValueError(f"{path} has a 'chat_template' that is no text.")
    return ChatTemplate(template, special_tokens)


def _generation(folder, settings, vocab_size) -> tuple[tuple[int, ...], dict[str, Any]]:
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


def _license(folder) -> str | None:
    """What the model card's first lines say of the licence."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    head = card.read_text("utf-8", errors="replace")[:10_000]
    found = re.match(r"---\n.*?^license: *['\"]?([^\n'\"]+)", head, re.DOTALL | re.M)
    return found[1].strip() if found else None
