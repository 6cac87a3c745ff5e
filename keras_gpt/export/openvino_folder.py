"""Write a language model as the folder that OpenVINO's libraries open."""

import copy
import importlib.util
from pathlib import Path

import numpy as np

from keras_gpt.checkpoints import write_usage
from keras_gpt.config import check_choice, suggest
from keras_gpt.controls import CONTROLS, check_control
from keras_gpt.export.process import call_on_backend
from keras_gpt.export.saved_model import describe_losses, describe_size
from keras_gpt.files import atomic_path, write_json
from keras_gpt.generation import score
from keras_gpt.generation.rows import check_stop_ids
from keras_gpt.installed import require
from keras_gpt.language_model import LanguageModel, storage
from keras_gpt.openvino_model import GRAPH_FILE

WEIGHTS = ("float32", "int8", "int4")
_CARD = """\
# A language model for OpenVINO

Written by [keras_gpt](https://pypi.org/project/keras-gpt/): {num_parameters:,} \
parameters, their weights in {weights}, a context of {context_length:,} tokens.

```python
lm = keras_gpt.LanguageModel.load(folder)
print(lm.generate("Once upon a time"))
```

`openvino_genai.LLMPipeline(folder, "CPU")` opens it too, where there is an \
`openvino_tokenizer.xml`.
"""
_SAMPLE_TOKENS = 4000
_WINDOW = 512


def export_openvino(
    lm: LanguageModel,
    path: str | Path,
    *,
    weights: str | None,
    stop_ids,
    progress: bool,
    **defaults,
) -> Path:
    """Write the folder; see `LanguageModel.export`.

    Keras's OpenVINO backend makes the graph, in a process of its own.

    Args:
        lm: A `LanguageModel`.
        path: The folder.
        weights: What they are stored in. Defaults to `"float32"`.
        stop_ids: Token ids that end a text. Defaults to the model's.
        progress: Whether to say on stderr what is being done.
        **defaults: Controls for when a caller gives none. Defaults to the model's.

    Returns:
        The folder.

    Raises:
        FileExistsError: There is something already.
        ImportError: OpenVINO isn't installed.
        ValueError: An option is out of its range, or the model can't be exported.
    """
    from rich.console import Console

    path, weights = Path(path), weights or "float32"
    lm = _with_defaults(lm, stop_ids, defaults)
    check_choice("weights", weights, WEIGHTS)
    _check_exportable(lm.model)
    if path.exists():
        raise FileExistsError(f"{path} is there already. Choose another name.")
    require("openvino", 'flavour="openvino"', "openvino")
    console = Console(stderr=True, quiet=not progress, highlight=False)
    with atomic_path(path) as folder:
        with console.status("Building the graph..."):
            call_on_backend(
                "openvino",
                "keras_gpt.export.openvino_graph",
                "write_graph",
                *(lm, folder / GRAPH_FILE, weights),
                dtype="float32",
                progress=progress,
            )
        write_usage(lm, folder)
        why_not = _write_tokenizers(folder)
        about = {"weights": weights, "num_parameters": lm.model.count_params()}
        lm.tokenizer.save(folder / storage.TOKENIZER_FOLDER)
        length = lm.model.config.context_length
        card = _CARD.format(context_length=length, **about)
        (folder / "README.md").write_text(card, "utf-8")
        write_json(
            folder / storage.CONFIG_FILE, {**storage.describe(lm), "openvino": about}
        )
    console.print(describe_size(path, weights))
    if why_not:
        console.print(f"openvino_genai can't open it: {why_not}.")
    if progress and weights != "float32":
        with console.status("Measuring what the stored weights cost..."):
            losses = [_loss(each) for each in (lm, LanguageModel.load(path))]
        console.print(describe_losses(*losses, weights))
    return path


def _with_defaults(lm, stop_ids, defaults):
    """The same model, that ends its text and samples otherwise."""
    for name, value in defaults.items():
        if name not in CONTROLS:
            raise TypeError(f"Unknown control. {suggest('control', name, CONTROLS)}")
        check_control(name, value)
    lm = copy.copy(lm)
    lm.generation_defaults = lm.generation_defaults | defaults
    if stop_ids is not None:
        check_stop_ids(stop_ids, lm.model.config.vocab_size)
        lm.stop_ids = tuple(stop_ids)
    return lm


def _check_exportable(model):
    if model.config.document_separator_id is not None:
        raise ValueError(
            "flavour='openvino' has no packed documents. Received: "
            f"document_separator_id={model.config.document_separator_id}. Export with "
            "flavour='stock', or train with packing=windows."
        )
    if model.quantization is not None:
        raise ValueError(
            "flavour='openvino' is made of float weights. Received: a model whose "
            f"weights are {model.quantization}. Load it without quantizing it, and "
            f"give weights={model.quantization!r} here."
        )


def _write_tokenizers(folder):
    """Write the tokenizer for `openvino_genai`; returns why it can't be, or `None`."""
    for package in ("openvino_tokenizers", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f"to convert its tokenizer needs {package}"
    if not (folder / "tokenizer.json").is_file():
        return "its tokenizer has no tokenizer.json"
    import openvino
    from openvino.frontend import GeneralFailure
    from openvino_tokenizers import convert_tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    try:
        pair = convert_tokenizer(tokenizer, with_detokenizer=True)
    except (GeneralFailure, RuntimeError, TypeError, ValueError, KeyError):
        return "openvino_tokenizers can't convert its tokenizer"
    for model, name in zip(pair, ("tokenizer", "detokenizer"), strict=True):
        openvino.save_model(model, folder / f"openvino_{name}.xml")
    return None


def _loss(lm):
    """Mean loss in nats on a sample of the embedded corpus, in short windows."""
    from keras_gpt.data import embedded_sample

    ids = embedded_sample(lm.tokenizer, _SAMPLE_TOKENS)
    length = min(_WINDOW, lm.model.config.context_length + 1)
    windows = [ids[start : start + length] for start in range(0, len(ids), length)]
    return -float(np.concatenate(score(lm.model, windows)).mean())
