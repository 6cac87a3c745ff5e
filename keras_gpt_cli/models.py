"""Commands that describe, bring in and write models."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from keras_gpt_cli import options
from keras_gpt_cli.description import describe, describe_result
from keras_gpt_cli.loading import is_ours, load
from keras_gpt_cli.output import note, print_table, suggest

SAMPLE_TOKENS = 4000  # of the embedded corpus, to see what fewer bits cost


def info(
    model: options.Model,
    revision: options.Revision = None,
) -> None:
    """Say what a model is: its size, architecture, tokenizer, origin and training.

    Of other libraries' models it reads no weights.
    """
    from keras_gpt import checkpoints, runs, training
    from keras_gpt.generation import is_outside
    from keras_gpt.language_model import find_base

    if is_ours(model):
        lm, base = load(model), None
        if training.has_lora(lm.model):
            base = find_base(model)
        if is_outside(lm.model):
            rows = describe(lm, _make_shapes(lm.model.config))
            rows["memory"] = (
                f"{_size_on_disk(Path(model)) / 1e6:,.0f} MB on disk, weights in "
                f"{lm.model.quantization or 'float32'}, run by OpenVINO"
            )
        else:
            rows = describe(lm, lm.model, base)
    else:
        checkpoint = checkpoints.find(model, revision=revision)
        rows = describe(checkpoint, _make_shapes(checkpoint.config))
    if (Path(model) / runs.RESULT_FILE).is_file():
        rows |= describe_result(runs.read_result(model))
    print_table(rows)


def import_(
    source: options.Model,
    output: Annotated[Path, typer.Argument(help="Folder for the model.")],
    dtype: options.Dtype = None,
    weights: options.StoredWeights = None,
    revision: options.Revision = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Bring a pretrained model into a folder of keras_gpt's own format."""
    _check_free(output, overwrite)
    from rich.console import Console

    is_small = weights in options.QUANTIZED
    rows = {}
    with Console(stderr=True).status("Loading the model") as status:
        lm = load(source, dtype, None if is_small else weights, revision, merge=True)
        if is_small:
            status.update(f"Measuring what {weights} saves and costs")
            rows = _quantize(lm, str(weights))
        status.update("Writing")
        lm.save(output)
    print_table({**describe(lm, lm.model), **rows})
    note(f"Wrote it to {output}.")
    words = {
        "chat": [],
        "generate": [_opening(lm.tokenizer)],
        "summarize": ["--file", "TEXT"],
        "translate": ["--file", "TEXT"],
    }
    suggest(lm.task, output, *words[lm.task])


def _make_shapes(config):
    """A GPT that has shapes alone, no memory."""
    import keras

    from keras_gpt import GPT

    with keras.StatelessScope(initialize_variables=False):
        return GPT(config)


def _opening(tokenizer):
    """A beginning of a text that a tokenizer can encode: some know few characters."""
    opening = "Once upon a time"
    try:
        tokenizer.encode(opening)
    except ValueError:
        opening = tokenizer.decode([tokenizer.vocab_size // 2])
    return opening


def write(
    model: options.Model,
    output: Annotated[
        Path, typer.Argument(help="A folder, or for GGUF a file that ends in .gguf.")
    ],
    format_: Annotated[
        options.Format | None,
        typer.Option(
            "--format",
            help="\\[default: gguf for a name that ends in .gguf, else huggingface]",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="What to write: float32, bfloat16 or float16. "
            "\\[default: the model's; gguf: float16]"
        ),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a model for Transformers and vLLM (huggingface) or llama.cpp (gguf)."""
    format_ = format_ or ("gguf" if output.suffix == ".gguf" else "huggingface")
    if format_ == options.Format.GGUF and output.suffix != ".gguf":
        raise ValueError(
            f"A GGUF file's name ends in .gguf. Received: {output}. Try {output}.gguf."
        )
    _check_free(output, overwrite)
    lm = load(model, merge=True)
    if format_ == options.Format.GGUF:
        lm.save_gguf(output, **options.given(dtype=dtype))
    else:
        lm.save_huggingface(output, **options.given(dtype=dtype))
    note(f"Wrote {_size_on_disk(output) / 1e6:,.1f} MB to {output}.")


def export(
    model: options.Model,
    path: Annotated[
        Path,
        typer.Argument(
            help="Version folder to write, such as served/docs/1; with --next-version "
            "the folder above, such as served/docs."
        ),
    ],
    next_version: Annotated[
        bool, typer.Option("--next-version", help="Choose the next number in PATH.")
    ] = False,
    default: Annotated[
        options.ServedTask | None,
        typer.Option(
            help="What serving_default does. \\[default: what the model was tuned for, "
            "else chat where it has a chat template, else generate]"
        ),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 64,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(help="Longest prompt. \\[default: the model's context]", min=1),
    ] = None,
    weights: Annotated[
        options.Weights | None,
        typer.Option(
            help="Fewer bits take less room on disk; in OpenVINO, which has int4 too, "
            "in memory as well, and are faster."
        ),
    ] = None,
    flavour: Annotated[
        options.Flavour,
        typer.Option(
            help="openvino for a folder that `generate`, `chat` and openvino_genai run "
            "on CPUs; xla only for servers started with an XLA flag."
        ),
    ] = options.Flavour.STOCK,
    batch_sizes: Annotated[
        list[int] | None,
        typer.Option(
            "--batch-size",
            help="Numbers of rows to warm the server up with; give it several times. "
            "\\[default: 1, 8, 32]",
            min=1,
        ),
    ] = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    regex: options.Regex = None,
    choice: options.Choice = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = None,
    revision: options.Revision = None,
) -> None:
    """Write a SavedModel for TensorFlow Serving, or a folder for OpenVINO."""
    if flavour != options.Flavour.OPENVINO and find_spec("tensorflow"):
        # TensorFlow makes the graph, whatever trained the model
        os.environ["KERAS_BACKEND"] = "tensorflow"
    lm = load(model, dtype, revision=revision, merge=True)
    folder = lm.export(
        path,
        next_version=next_version,
        default=default and str(default),
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        weights=weights and str(weights),
        flavour=str(flavour),
        seed=seed,
        **options.given(batch_sizes=batch_sizes),
        **options.form(None, regex, choice),
        **options.sampling(temperature, top_k, top_p, min_p, repetition_penalty),
    )
    if flavour == options.Flavour.OPENVINO:
        suggest(lm.task, folder)
        return
    note(
        f"How to serve and ask it: {folder / 'README.md'}. Its default is to "
        f"{default or lm.task}."
    )


def _quantize(lm, mode):
    """Keep the weights in fewer bits; returns rows about what that saves and costs."""
    from keras_gpt import data, training

    def measure():
        size = training.count_trainable(lm.model)["weight_bytes"]
        return size / 1e6, lm.evaluate_ids(sample).loss

    sample = [data.embedded_sample(lm.tokenizer, SAMPLE_TOKENS)]
    dtype = lm.model.dtype_policy.name
    large, before = measure()
    lm.quantize(mode)
    small, after = measure()
    return {
        "weights": f"{large:,.1f} MB as {dtype}, {small:,.1f} MB as {mode}",
        f"loss on {len(sample[0]):,} tokens": (
            f"{before:.4f} as {dtype}, {after:.4f} as {mode}, {after - before:+.4f} "
            "nats per token of the embedded corpus"
        ),
    }


def _size_on_disk(path):
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _check_free(path, overwrite):
    """Refuse to write over what is there."""
    is_taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if is_taken and not overwrite:
        raise FileExistsError(
            f"{path} is there already. Choose another name, or give --overwrite."
        )
