"""The `keras-gpt` command: each subcommand calls one public function.

It is a module of its own, beside the package, because to import the package is to
import Keras and its backend: `--help` needn't wait for that, and what TensorFlow
prints meanwhile can be hidden.
"""

import dataclasses
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="keras-gpt",
    help=(
        "From a text file to a trained, generating GPT, on TensorFlow, JAX or PyTorch: "
        "choose with the environment variable KERAS_BACKEND."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Seed = Annotated[int, typer.Option(help="The same seed gives the same text.")]
TextField = Annotated[
    str, typer.Option(help="Field of JSON Lines or column of Parquet with the text.")
]
Encoding = Annotated[str, typer.Option(help="Encoding of text files.")]
CORPUS_HELP = (
    "A text file, a folder, JSON Lines or Parquet; or 'embedded', the documentation "
    "that comes with Python."
)

QUICKSTART_PROMPT = "The string module "


@app.command()
def quickstart(
    corpus: Annotated[str, typer.Option(help=CORPUS_HELP)] = "embedded",
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run. [default: runs/quickstart]")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What the trained model shall continue.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 500,
) -> None:
    """Train a small GPT in minutes, from nothing, and let it write."""
    _import_quietly()
    from rich.console import Console

    from keras_gpt import runs

    console = Console(stderr=True)
    output = output or _free_folder(Path("runs/quickstart"))
    config = runs.RunConfig(
        corpus=corpus,
        output=str(output),
        vocab_size=2048,
        model={"preset": "quickstart"},
        steps=steps,
        batch_size=16,
        learning_rate=2e-3,
        evaluate_every=steps // 5 if steps % 5 == 0 else steps,
        sample_tokens=64,
    )
    lm = runs.train(config, console=console)
    result = runs.read_result(output)
    console.print(
        f"\nTrained in {result['seconds']:.0f} s. Training loss "
        f"{result['last_training_loss']:.3f}, validation loss "
        f"{result['validation_loss']:.3f} nats per token, which is "
        f"{result['validation_bits_per_byte']:.3f} bits per byte of text.",
        highlight=False,
    )
    if prompt is None:
        prompt = QUICKSTART_PROMPT
        if corpus != "embedded":
            prompt = runs.first_words(lm, output / runs.DATA_FOLDER)
    console.print(f"\nIt continues {prompt!r}:\n", highlight=False)
    _stream(lm, prompt, max_new_tokens=120, temperature=0.8, top_k=40, seed=0)
    # in a virtual environment that isn't active, its commands need their folder
    folder = "" if shutil.which("keras-gpt") else f"{Path(sys.argv[0]).parent}/"
    console.print(
        f"\nThe loss curve is in {output / runs.PLOT_FILE}. What to type next:\n"
        f'  {folder}keras-gpt generate {output} "class " --temperature 0.7\n'
        f"  {folder}keras-gpt evaluate {output} --file README.md\n"
        f"  {folder}keras-gpt info {output}\n"
        f"  {folder}tensorboard --logdir {output / runs.EVENTS_FOLDER}\n"
        f"  {folder}keras-gpt train --help",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def tokenize(
    corpus: Annotated[str, typer.Argument(help=CORPUS_HELP)],
    output: Annotated[Path, typer.Argument(help="Folder for the tokenizer.")],
    kind: Annotated[
        str, typer.Option(help="byte_pair, sentencepiece or characters.")
    ] = "byte_pair",
    vocab_size: Annotated[
        int | None, typer.Option(help="[default: 4096; characters: all]")
    ] = None,
    text_field: TextField = "text",
    encoding: Encoding = "utf-8",
) -> None:
    """Train a tokenizer on a corpus."""
    _import_quietly()
    from keras_gpt import runs

    tokenizer = runs.train_tokenizer(
        kind, corpus, vocab_size, text_field=text_field, encoding=encoding
    )
    tokenizer.save(output)
    _note(f"Wrote a {kind} tokenizer with {tokenizer.vocab_size:,} ids to {output}.")


@app.command()
def prepare(
    corpus: Annotated[str, typer.Argument(help=CORPUS_HELP)],
    output: Annotated[Path, typer.Argument(help="Folder for the token files.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer.")],
    validation_fraction: Annotated[
        float, typer.Option(help="Part of the corpus that is not trained on.")
    ] = 0.1,
    text_field: TextField = "text",
    encoding: Encoding = "utf-8",
    workers: Annotated[
        int | None, typer.Option(help="Processes. [default: one for each core]")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there.")
    ] = False,
) -> None:
    """Turn a corpus into token files for training; goes on where it was stopped."""
    _import_quietly()
    from keras_gpt import data, tokenizers

    found = data.prepare(
        corpus,
        output,
        tokenizers.load(tokenizer),
        validation_fraction=validation_fraction,
        text_field=text_field,
        encoding=encoding,
        num_workers=workers,
        overwrite=overwrite,
    )
    counts = ", ".join(
        f"{split['num_tokens']:,} {name}" for name, split in found["splits"].items()
    )
    _note(f"Wrote tokens to {output}: {counts}.")


@app.command()
def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]...",
            help="Fields of the run, for example learning_rate=3e-4 "
            "model.num_layers=8; `keras_gpt.runs.RunConfig` lists them.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with fields of the run.")
    ] = None,
    corpus: Annotated[str | None, typer.Option(help=CORPUS_HELP)] = None,
    output: Annotated[str | None, typer.Option(help="Folder of the run.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the stopped run in the folder."),
    ] = False,
) -> None:
    """Train a GPT: tokenizer, data, training, checkpoints, logs, in one folder."""
    _import_quietly()
    from keras_gpt import runs

    if resume and config is None and output is not None:
        config = Path(output) / runs.CONFIG_FILE
    run_config = runs.RunConfig.from_yaml(config, overrides or [])
    # not as overrides: a path is no YAML
    named = {"corpus": corpus, "output": output}
    named = {name: value for name, value in named.items() if value is not None}
    run_config = dataclasses.replace(run_config, **named)
    runs.train(run_config, resume=resume)
    result = runs.read_result(run_config.output)
    for name, value in result.items():
        print(
            f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}"
        )
    _note(f'Try it: keras-gpt generate {run_config.output} "Once"')


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="Folder of a run or a saved model.")],
    prompt: Annotated[
        str | None,
        typer.Argument(help="Text to continue; read from standard input if -"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to add.")] = 200,
    temperature: Annotated[
        float, typer.Option(help="Lower is safer, higher is wilder, 0 is greedy.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Sample from the likeliest so many; 0 for all.")
    ] = 40,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from this much probability.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Sample from what is this likely beside the likeliest."),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1, repetition becomes rarer.")
    ] = 1.0,
    num_beams: Annotated[int, typer.Option(help="Above 1, beam search.")] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends it; may be repeated.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Continue a text."""
    _import_quietly()
    from keras_gpt import LanguageModel

    if prompt == "-":
        prompt = sys.stdin.read()
    lm = LanguageModel.load(model)
    if num_beams != 1:
        text = lm.generate(
            prompt or "",
            max_new_tokens,
            num_beams=num_beams,
            repetition_penalty=repetition_penalty,
            stop=stop or (),
        )
        print((prompt or "") + text)
        return
    _stream(
        lm,
        prompt or "",
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k or None,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop or (),
        seed=seed,
    )


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a run or a saved model.")],
    file: Annotated[
        str | None,
        typer.Option(help=CORPUS_HELP + " [default: the run's validation data]"),
    ] = None,
    text_field: TextField = "text",
    encoding: Encoding = "utf-8",
) -> None:
    """Measure how well a model predicts text: loss, perplexity, bits per byte."""
    _import_quietly()
    from keras_gpt import LanguageModel, data, runs

    lm = LanguageModel.load(model)
    if file is None:
        result = runs.evaluate_validation(model, lm)
    else:
        result = lm.evaluate(
            data.read_documents(file, text_field=text_field, encoding=encoding)
        )
    print(f"loss:          {result.loss:.4f} nats per token")
    print(f"perplexity:    {result.perplexity:.2f}")
    print(f"bits per byte: {result.bits_per_byte:.4f}")
    print(f"tokens:        {result.num_tokens:,}")


@app.command()
def info(
    model: Annotated[Path, typer.Argument(help="Folder of a run or a saved model.")],
) -> None:
    """Say what a model is: architecture, parameters, tokenizer, training."""
    _import_quietly()
    from rich.console import Console
    from rich.table import Table

    from keras_gpt import LanguageModel, runs

    lm = LanguageModel.load(model)
    rows: dict[str, Any] = {
        "parameters": f"{lm.model.count_params():,}",
        "dtype": lm.model.dtype_policy.name,
        **lm.model.config.to_dict(),
        "tokenizer": f"{type(lm.tokenizer).__name__}, {lm.tokenizer.vocab_size:,} ids",
        "special tokens": ", ".join(lm.tokenizer.special_tokens) or "none",
        "FLOPs per token": f"{lm.model.count_flops_per_token(training=False):,}",
    }
    if (model / runs.RESULT_FILE).is_file():
        rows.update(runs.read_result(model))
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console(highlight=False).print(table)


def main() -> None:
    """Run the command; show what a user can mend as one line and exit with 2."""
    # read by TensorFlow when it is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("KERAS_GPT_TRACEBACK"):
            raise
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "\nStopped. A training run goes on with `keras-gpt train --resume --output "
            "FOLDER`.",
            file=sys.stderr,
        )
        sys.exit(130)


def _import_quietly():
    """Import the package and its backend without what TensorFlow's C++ code prints.

    It says on every start that it found no GPU, by a route that no setting reaches.
    Other output to standard error is put back if the import fails.
    """
    with tempfile.TemporaryFile() as hidden:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(hidden.fileno(), 2)
        try:
            import keras_gpt  # noqa: F401
        except BaseException:
            hidden.seek(0)
            os.write(kept, hidden.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _stream(lm, prompt, **controls):
    print(prompt, end="", flush=True)
    for piece in lm.stream(prompt, **controls):
        print(piece, end="", flush=True)
    print()


def _note(message):
    print(message, file=sys.stderr)


def _free_folder(folder):
    """The folder, or the first free one with a number behind."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
