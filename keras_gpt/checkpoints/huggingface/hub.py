"""Models on the Hugging Face Hub."""

import re
from pathlib import Path

HUB = "hf://"
_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja", "README.md")


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

    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/(.*))?", name)
    if found is None:
        raise ValueError(f"A model is named hf://owner/name. Received: {HUB}{name}.")
    repository, file = found.groups()
    options = {"revision": revision, "token": token}
    try:
        if file:
            path = huggingface_hub.hf_hub_download(repository, file, **options)
        else:
            options["allow_patterns"] = _FILES
            path = huggingface_hub.snapshot_download(repository, **options)
        return Path(path)
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{HUB}{name} is gated: accept its licence, then give `token`."
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{HUB}{name} can't be downloaded ({str(error).splitlines()[0]}). Check "
            "the name, the connection and, for a private model, `token`."
        ) from error
