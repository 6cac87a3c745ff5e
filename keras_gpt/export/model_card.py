"""The README.md of an exported model: what it offers and how to ask it."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path

from keras_gpt.export.settings import LIMIT
from keras_gpt.export.warmup import sample_rows

FILE = "README.md"
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
    fields = dataclasses.asdict(settings)
    fields |= {signature: _body(signature, row) for signature, row in rows.items()}
    fields |= {
        "name": name,
        "num_parameters": lm.model.count_params(),
        "context_length": lm.model.config.context_length,
        "tokenizer": type(lm.tokenizer).__name__,
        "version": importlib.metadata.version("keras-gpt"),
        "tensorflow": importlib.metadata.version("tensorflow"),
        "weights": weights,
        "loss": loss,
        "source": f"\nMade from {source}.\n" if source else "",
        "flavour": _XLA if needs_xla else "",
        "flags": " \\\n  --xla_cpu_compilation_enabled=true" if needs_xla else "",
        "stop_ids": ", ".join(map(str, settings.stop_ids)) or "none",
        "prompt": json.dumps(rows["generate"]["prompt"]),
    }
    if settings.top_k == LIMIT:
        fields["top_k"] = "without limit"
    template = Path(__file__).with_name("model_card.md").read_text("utf-8")
    (folder / FILE).write_text(template.format(**fields), encoding="utf-8")


def _body(signature, row):
    """The body of a REST request."""
    # one input may stand alone
    instance = row if len(row) > 1 else next(iter(row.values()))
    named = {} if signature == "serving_default" else {"signature_name": signature}
    return json.dumps({**named, "instances": [instance]})
