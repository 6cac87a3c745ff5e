"""The README.md of an exported model: what it offers and how to ask it."""

import importlib.metadata
import json
from pathlib import Path

from keras_gpt.export.settings import LIMIT
from keras_gpt.export.warmup import sample_text

FILE = "README.md"
_CONTROLS = """\
| `max_new_tokens` | int32 | 0 to {max_new_tokens} |
| `temperature` | float32 | 0 is greedy |
| `top_k` | int32 | sample from so many of the likeliest; 0 for no limit |
| `top_p` | float32 | sample from this much probability; 1 for no limit |
| `seed` | int32 | the same seed, prompt and controls give the same text |"""
_CARD = """\
# {name}

A GPT with {num_parameters:,} parameters and a context of {context_length:,} tokens, \
with its {tokenizer}, as a SavedModel for TensorFlow Serving: text in, text out. \
Written by keras_gpt {version} with TensorFlow {tensorflow}; weights in {weights}{loss}.
{source}{flavour}
## Serve it
TensorFlow Serving wants the folder above this one, which holds the versions:

```sh
docker run --rm -p 8501:8501 -p 8500:8500 \\
  -v "$(realpath ..):/models/{name}" -e MODEL_NAME={name} \\
  tensorflow/serving:2.20.0{flags}
```

## Ask it
```sh
curl http://localhost:8501/v1/models/{name}:predict -d '{default}'
curl http://localhost:8501/v1/models/{name}:predict -d '{generate}'
curl http://localhost:8501/v1/models/{name}:predict -d '{score}'
curl http://localhost:8501/v1/models/{name}:predict -d '{tokenize}'
curl http://localhost:8501/v1/models/{name}:predict -d '{generate_ids}'
```

```python
from keras_gpt.serving import Client

with Client("http://localhost:8501", model="{name}") as client:  # or localhost:8500
    print(client.generate({prompt}, max_new_tokens={max_new_tokens}))
```

## Signatures
Dimension 0 of every input and output is the batch, b; each row is answered as if it \
were alone.

**`serving_default`**: continues text, {max_new_tokens} tokens at most, with \
temperature {temperature}, top_k {top_k}, top_p {top_p} and seed {seed}.

| input | | |
|---|---|---|
| `prompt` | string (b) | at most {max_prompt_tokens:,} tokens of UTF-8 text |

| output | | |
|---|---|---|
| `text` | string (b) | the new text alone |
| `num_tokens` | int32 (b) | how many tokens it has |
| `finish_reason` | string (b) | `stop` (the model ended it) or `length` |

**`generate`**: the same, each row with controls of its own, all of them required.

| input | | |
|---|---|---|
| `prompt` | string (b) | |
{controls}

**`generate_ids`**: token ids in, token ids out. `token_ids` int32 (b, t), padded on \
the right; `lengths` int32 (b), how many are a row's own; the controls. Gives \
`token_ids` int32 (b, {max_new_tokens}), -1 behind the last; `log_probs` float32 \
(b, {max_new_tokens}), in nats; `num_tokens` int32 (b).

**`score`**: `text` string (b). Gives `log_probs` float32 (b, t - 1), of each token \
given those before it, in nats, 0 behind the last; `token_ids` int32 (b, t), -1 behind \
the last; `num_tokens` int32 (b).

**`tokenize`**: `text` string (b). Gives `token_ids` int32 (b, t), -1 behind the last, \
and `num_tokens` int32 (b).

Fixed for all requests: stop tokens {stop_ids}, min_p {min_p}, repetition penalty \
{repetition_penalty}. A text may outgrow the context: the older half of it is then \
forgotten.
"""
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
    text = sample_text(lm.tokenizer, settings.max_prompt_tokens)
    source = ", ".join(f"{key} {value}" for key, value in lm.source.items())
    loss = f", which adds {losses[1] - losses[0]:+.4f} nats per token" if losses else ""
    content = _CARD.format(
        name=name,
        num_parameters=lm.model.count_params(),
        context_length=lm.model.config.context_length,
        tokenizer=type(lm.tokenizer).__name__,
        version=importlib.metadata.version("keras-gpt"),
        tensorflow=importlib.metadata.version("tensorflow"),
        weights=weights,
        loss=loss,
        source=f"\nMade from {source}.\n" if source else "",
        flavour=_XLA if settings.flavour == "xla" else "",
        flags=(
            " \\\n  --xla_cpu_compilation_enabled=true"
            if settings.flavour == "xla"
            else ""
        ),
        controls=_CONTROLS.format(max_new_tokens=settings.max_new_tokens),
        max_new_tokens=settings.max_new_tokens,
        max_prompt_tokens=settings.max_prompt_tokens,
        temperature=settings.temperature,
        top_k="without limit" if settings.top_k == LIMIT else settings.top_k,
        top_p=settings.top_p,
        seed=settings.seed,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        stop_ids=", ".join(map(str, settings.stop_ids)) or "none",
        prompt=json.dumps(text),
        **_requests(settings, text, lm.tokenizer.encode(text)),
    )
    (folder / FILE).write_text(content, encoding="utf-8")


def _requests(settings, text, token_ids):
    """Bodies of REST requests by signature."""
    controls = {
        "max_new_tokens": min(16, settings.max_new_tokens),
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 1.0,
        "seed": 0,
    }
    ids = {"token_ids": token_ids, "lengths": len(token_ids)}

    def body(signature, row):
        return json.dumps({"signature_name": signature, "instances": [row]})

    return {
        "default": json.dumps({"instances": [text]}),
        "generate": body("generate", {"prompt": text, **controls}),
        "generate_ids": body("generate_ids", {**ids, **controls}),
        "score": body("score", text),
        "tokenize": body("tokenize", text),
    }
