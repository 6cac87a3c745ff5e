"""The README.md of an exported model: what it offers and how to ask it."""

import dataclasses
import importlib.metadata
import json
import re
from pathlib import Path

from keras_gpt.export.settings import LIMIT
from keras_gpt.export.warmup import sample_rows

FILE = "README.md"
_MOST_PAIRS = 8
_DEFAULTS = {
    "chat": "Answers one message of a user for each row as `chat` does, below the "
    "instruction of `complete` if the model was tuned with one",
    "summarize": "As `summarize`",
    "translate": "As `translate`, with the languages if there are several pairs",
    "generate": "Continues plain text, as `generate` does",
}
_XLA = """
**This export needs XLA.** Its decode loop is compiled when it is first called with a \
batch size and a length. TensorFlow Serving refuses it unless it was started with \
`--xla_cpu_compilation_enabled=true` (on a GPU `--xla_gpu_compilation_enabled=true`). \
Export with flavour `stock` for servers with their default flags.
"""


def write_model_card(
    lm, settings, folder: Path, path: Path, weights: str, losses
) -> None:
    """Write the model card.

    Args:
        lm: The `LanguageModel` that was exported.
        settings: The `Settings` that it was exported with.
        folder: Where to write.
        path: The version folder, for the model's name.
        weights: What they are stored in.
        losses: As `_compare_losses` in `saved_model.py`.
    """
    name = path.absolute().parent.name
    rows = sample_rows(lm.tokenizer, settings, max_new_tokens=16)
    source = ", ".join(f"{key} {value}" for key, value in lm.source.items())
    loss = f", which adds {losses[1] - losses[0]:+.4f} nats per token" if losses else ""
    needs_xla = settings.flavour == "xla"
    requests = [
        f"curl http://localhost:8501/v1/models/{name}:predict -d "
        f"'{_body(signature, rows[signature])}'"
        for signature in settings.signatures
    ]
    fields = dataclasses.asdict(settings) | {
        "name": name,
        "num_parameters": lm.model.count_params(),
        "context_length": lm.model.config.context_length,
        "tokenizer": type(lm.tokenizer).__name__,
        "version": importlib.metadata.version("keras-gpt"),
        "tensorflow": importlib.metadata.version("tensorflow"),
        "weights": weights,
        "loss": loss,
        "source": f"\nMade from {source}.\n" if source else "",
        "tasks": _describe_tasks(lm.tasks),
        "flavour": _XLA if needs_xla else "",
        "flags": " \\\n  --xla_cpu_compilation_enabled=true" if needs_xla else "",
        "inputs": _tensors(rows["serving_default"]),
        "requests": "\n".join(requests),
        "call": _call(settings, json.dumps(rows["generate"]["prompt"])),
        "default": _DEFAULTS[settings.default],
        "languages": _list_languages(settings.languages),
        "stop_ids": ", ".join(map(str, settings.stop_ids)) or "none",
        "form": f" Every answer is {settings.form.about}, or its `finish_reason` is "
        "`length`: it isn't whole."
        if settings.form
        else "",
        "template": _show_template(lm.chat_template),
        "adapters": _list_adapters(settings.adapters),
    }
    if settings.top_k == LIMIT:
        fields["top_k"] = "without limit"
    card = Path(__file__).with_name("model_card.md").read_text("utf-8")
    for signature in re.findall("### `(.*)`", card):
        if signature not in settings.signatures:
            card = re.sub(f"(?s)### `{signature}`.*?(?=### )", "", card)
    (folder / FILE).write_text(card.format(**fields), encoding="utf-8")


def _body(signature, row):
    """The body of a REST request."""
    # one input that is no list may stand alone
    [*values] = row.values()
    instance = values[0] if len(values) == 1 else row
    named = {} if signature == "serving_default" else {"signature_name": signature}
    return json.dumps({**named, "instances": [instance]})


def _tensors(row):
    """Arguments of a signature in Python."""
    values = {name: json.dumps([value]) for name, value in row.items()}
    return ", ".join(f"{name}=tf.constant({value})" for name, value in values.items())


def _call(settings, text):
    """How the client asks in the form of the default task."""
    if settings.default == "chat":
        return f'client.chat([{{"role": "user", "content": {text}}}])'
    if settings.default == "translate":
        source, target = settings.languages[0]
        return f'client.translate({text}, source="{source}", target="{target}")'
    return f"client.{settings.default}({text})"


def _describe_tasks(tasks):
    """What the model was tuned for, and how it was told."""
    lines = [
        f"- {name}"
        + (f": {about['instruction']!r}" if about.get("instruction") else "")
        for name, about in tasks.items()
    ]
    return "\nTuned for:\n" + "\n".join(lines) + "\n" if lines else ""


def _list_languages(pairs):
    if len(pairs) > _MOST_PAIRS:
        return ", ".join(sorted({code for pair in pairs for code in pair}))
    return ", ".join(f"{source} to {target}" for source, target in pairs)


def _list_adapters(names):
    """A row of the table of inputs."""
    known = ", ".join(f"`{name}`" for name in names)
    about = f"one of {known}; empty for the base alone"
    return f"\n| `adapter` | string (b) | {about} |" if names else ""


def _show_template(template):
    """The chat template, as a block of code."""
    if template is None:
        return ""
    return f"\n## Chat template\n\n````jinja\n{template.template}\n````\n"
