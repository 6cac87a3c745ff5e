"""Commands that make a model: tokenizer, data, training, fine-tuning."""

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_gpt_cli.loading import load
from keras_gpt_cli.options import (
    CORPUS_HELP,
    Encoding,
    Model,
    Overwrite,
    ProcessOrRay,
    RayAddress,
    TextField,
    TokenizingEngine,
)
from keras_gpt_cli.output import note, print_table, stream, suggest

QUICKSTART_PROMPT = "open(file)"


def quickstart(
    corpus: Annotated[str, typer.Option(help=CORPUS_HELP)] = "embedded",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the run. \\[default: runs/quickstart]"),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What the trained model shall continue.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of training.", min=1)] = 1760,
) -> None:
    """Train a small GPT in minutes, from nothing, and let it write."""
    from rich.console import Console

    from keras_gpt import runs

    console = Console(stderr=True, highlight=False)
    output = output or _free_folder(Path("runs/quickstart"))
    config = runs.RunConfig(
        corpus=corpus,
        output=str(output),
        vocab_size=2048,
        # narrow and in small batches: it sees the corpus twice in the time
        model={"preset": "quickstart", "embedding_dimension": 128, "num_heads": 4},
        recipe="fast",
        weight_decay=0.8,
        steps=steps,
        batch_size=8,
        evaluate_every=steps // 5 if steps % 5 == 0 else steps,
        sample_tokens=64,
    )
    lm = runs.train(config, console=console)
    result = runs.read_result(output)
    console.print(
        "\nTrained in {seconds:.0f} s. Training loss {last_training_loss:.3f}, "
        "validation loss {validation_loss:.3f} nats per token, which is "
        "{validation_bits_per_byte:.3f} bits per byte of text.".format(**result),
    )
    if prompt is None:
        prompt = QUICKSTART_PROMPT
        if corpus != "embedded":
            prompt = runs.first_words(lm, output / runs.DATA_FOLDER)
    console.print(f"\nIt had read nothing else. Now it continues {prompt!r}:\n")
    stream(lm, prompt, max_new_tokens=100, temperature=0.5, top_p=0.9, seed=0)
    # in a virtual environment that isn't active, its commands need their folder
    folder = "" if shutil.which("keras-gpt") else f"{Path(sys.argv[0]).parent}/"
    console.print(
        f"\nThe loss curve is in {output / runs.PLOT_FILE}. What to type next:\n"
        f'  {folder}keras-gpt generate {output} "Return a" --temperature 0.6\n'
        f'  {folder}keras-gpt attention {output} "Return a list of the files"\n'
        f"  {folder}keras-gpt evaluate {output} --file README.md\n"
        f"  {folder}keras-gpt info {output}\n"
        f"  {folder}keras-gpt serve {output}  # pip install 'keras-gpt\\[server]'\n"
        f"  {folder}tensorboard --logdir {output / runs.EVENTS_FOLDER}\n"
        f"  {folder}keras-gpt train --help",
        soft_wrap=True,
    )


def tokenize(
    corpus: Annotated[str, typer.Argument(help=CORPUS_HELP)],
    output: Annotated[Path, typer.Argument(help="Folder for the tokenizer.")],
    kind: Annotated[
        str, typer.Option(help="byte_pair, sentencepiece or characters.")
    ] = "byte_pair",
    vocab_size: Annotated[
        int | None, typer.Option(help="\\[default: 4096; characters: all]", min=1)
    ] = None,
    text_field: TextField = "text",
    encoding: Encoding = "utf-8",
    engine: Annotated[
        ProcessOrRay, typer.Option(help="This process, or a task of a Ray cluster.")
    ] = ProcessOrRay.PROCESS,
    ray_address: RayAddress = None,
) -> None:
    """Train a tokenizer on a corpus."""
    from keras_gpt import runs

    tokenizer = runs.train_tokenizer(
        kind,
        corpus,
        vocab_size,
        text_field=text_field,
        encoding=encoding,
        engine=engine,
        ray_address=ray_address,
    )
    tokenizer.save(output)
    note(f"Wrote a {kind} tokenizer with {tokenizer.vocab_size:,} ids to {output}.")


def prepare(
    corpus: Annotated[str, typer.Argument(help=CORPUS_HELP)],
    output: Annotated[Path, typer.Argument(help="Folder for the token files.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer.")],
    validation_fraction: Annotated[
        float, typer.Option(help="Part of the corpus that is not trained on.")
    ] = 0.1,
    text_field: TextField = "text",
    encoding: Encoding = "utf-8",
    engine: Annotated[
        TokenizingEngine, typer.Option(help="Threads here, or tasks of a Ray cluster.")
    ] = TokenizingEngine.THREADS,
    workers: Annotated[
        int | None, typer.Option(help="Threads. \\[default: one for each core]", min=1)
    ] = None,
    ray_address: RayAddress = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a corpus into token files for training; goes on where it was stopped."""
    from keras_gpt import data, tokenizers

    found = data.prepare(
        corpus,
        output,
        tokenizers.load(tokenizer),
        validation_fraction=validation_fraction,
        text_field=text_field,
        encoding=encoding,
        engine=engine,
        num_workers=workers,
        ray_address=ray_address,
        overwrite=overwrite,
    )
    splits = found["splits"].items()
    counts = [f"{split['num_tokens']:,} {name}" for name, split in splits]
    note(f"Wrote tokens to {output}: {', '.join(counts)}.")


def _fields(examples):
    """An argument for fields of a run."""
    about = f"Fields of the run, for example {examples}; --schema lists them."
    return typer.Argument(metavar="[NAME=VALUE]...", help=about)


def _schema_option(name):
    """An option that prints the JSON schema of a run's file and nothing else."""

    def show(is_wanted: bool):
        if is_wanted:
            from keras_gpt import runs

            print(json.dumps(getattr(runs, name).schema_for_editors(), indent=2))
            raise typer.Exit

    about = "Print the fields of a run as JSON schema, which editors read."
    return typer.Option("--schema", help=about, is_eager=True, callback=show)


ConfigFile = Annotated[
    Path | None, typer.Option(help="YAML file with fields of the run.")
]
Devices = Annotated[
    str | None,
    typer.Option(
        help="With JAX, over how many: all, a number, fsdp:4 with the weights cut too, "
        "or data:2,model:2. \\[default: one]"
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the stopped run in the folder, as it was."
    ),
]


def train(
    overrides: Annotated[
        list[str] | None, _fields("learning_rate=3e-4 model.num_layers=8")
    ] = None,
    config: ConfigFile = None,
    corpus: Annotated[str | None, typer.Option(help=CORPUS_HELP)] = None,
    output: Annotated[str | None, typer.Option(help="Folder of the run.")] = None,
    devices: Devices = None,
    resume: Resume = False,
    schema: Annotated[bool, _schema_option("RunConfig")] = False,
) -> None:
    """Train a GPT: tokenizer, data, training, checkpoints, logs, in one folder."""
    from keras_gpt import runs

    fields = {"corpus": corpus, "output": output, "devices": devices}
    lm, config = _do_run(
        runs.train, runs.RunConfig, config, overrides, resume, **fields
    )
    folder = config.data or Path(config.output, runs.DATA_FOLDER)
    prompt = runs.first_words(lm, folder)
    [prompt, *_] = [*prompt.strip().splitlines(), prompt]
    suggest("generate", config.output, prompt)


def sweep(
    overrides: Annotated[
        list[str] | None, _fields("steps=500 model.preset=char_cpu")
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="A field and what to choose from: model.num_layers=2,4,6 or "
            "batch_size=8:64 or learning_rate=1e-4:1e-2:log. Give it for each field.",
        ),
    ] = None,
    config: ConfigFile = None,
    corpus: Annotated[str | None, typer.Option(help=CORPUS_HELP)] = None,
    output: Annotated[Path, typer.Option(help="Folder of the sweep.")] = Path(
        "sweeps/gpt"
    ),
    trials: Annotated[
        int | None,
        typer.Option(
            help="Runs in all. \\[default: all of the lists, or 20 with a range]", min=1
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="After which no further run is begun.", min=0)
    ] = None,
) -> None:
    """Do runs that differ in some fields, to find the lowest loss; goes on if stopped.

    Lists alone are gone through whole; with a range, values near those that went well
    are tried more.
    """
    from rich.console import Console
    from rich.table import Table

    from keras_gpt import runs

    spaces = dict(text.partition("=")[::2] for text in over or ())
    base = runs.RunConfig.from_yaml(config, overrides, corpus=corpus)
    found = runs.sweep(base, spaces, output, trials=trials, minutes=minutes)
    table = Table(box=None, pad_edge=False)
    for name in ("run", *spaces, "loss"):
        table.add_column(name, overflow="fold")
    for trial in found:
        values = (
            f"{value:.4g}"
            if isinstance(value := trial.values[name], float)
            else str(value)
            for name in spaces
        )
        loss = "failed" if trial.loss is None else f"{trial.loss:.4f}"
        table.add_row(trial.folder.name, *values, loss)
    Console(highlight=False).print(table)
    note(f"Wrote {output / runs.TRIALS_FILE} and {output / runs.PICTURE_FILE}.")


def finetune(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            help="JSON Lines or Parquet with the fields prompt and completion, text "
            "and summary, source and target, or messages; or a folder with "
            "train.jsonl and validation.jsonl."
        ),
    ],
    output: Annotated[str, typer.Argument(help="Folder of the run.")],
    overrides: Annotated[
        list[str] | None,
        _fields("epochs=3 lora_rank=32, or lora_rank=0 to train all weights"),
    ] = None,
    config: ConfigFile = None,
    devices: Devices = None,
    resume: Resume = False,
    schema: Annotated[bool, _schema_option("FinetuneConfig")] = False,
) -> None:
    """Teach a pretrained model a task from examples, by LoRA or in all its weights."""
    from keras_gpt import runs

    fields = {"model": model, "data": data, "output": output, "devices": devices}
    _, config = _do_run(
        runs.finetune, runs.FinetuneConfig, config, overrides, resume, **fields
    )
    record = runs.read_first_example(config.data)
    if "messages" in record:
        said = {m["role"]: m["content"] for m in reversed(record["messages"])}
        system = ["--system", said["system"]] if "system" in said else []
        question = ["--prompt", said.get("user", "")]
        suggest("chat", output, *question, *system, "--temperature", "0")
    elif "prompt" in record:
        suggest("generate", output, record["prompt"], "--temperature", "0")
    elif "text" in record:
        suggest("summarize", output, record["text"])
    else:
        languages = [record["source_language"], "--target", record["target_language"]]
        suggest("translate", output, record["source"], "--source", *languages)


def preview(
    model: Model,
    data: Annotated[str, typer.Argument(help="JSON Lines or Parquet of examples.")],
    count: Annotated[int, typer.Option(help="Examples to show.", min=0)] = 3,
    sequence_length: Annotated[
        int, typer.Option(help="Tokens that an example may have.", min=1)
    ] = 512,
    instruction: Annotated[
        str | None, typer.Option(help="What a chat model is told before the question.")
    ] = None,
) -> None:
    """Show examples as the model will see them: what it learns is underlined."""
    from rich.console import Console

    from keras_gpt import tasks

    lm = load(model)
    if instruction is not None:
        lm.tasks = {name: {"instruction": instruction} for name in tasks.TASKS}
    examples, about = tasks.read_examples(lm, data, sequence_length)
    console = Console(highlight=False, soft_wrap=True)
    for number, example in enumerate(examples[:count], 1):
        console.rule(f"example {number}: {len(example.token_ids)} tokens", align="left")
        console.print(_color_tokens(lm.tokenizer, example, console.is_terminal))
    lengths = sorted(len(example.token_ids) for example in examples)
    learned = sum(example.num_answer_tokens for example in examples)
    median = lengths[len(lengths) // 2]
    rows = {
        "examples": f"{len(examples):,}",
        "tokens": f"{sum(lengths):,}, of which {learned:,} are learned",
        "tokens of an example": f"{lengths[0]} to {lengths[-1]}, median {median}",
        "shortened": f"{about['num_shortened']:,}",
        "tasks": ", ".join(about["tasks"]),
    }
    print_table(rows)


def _color_tokens(tokenizer, example, is_terminal):
    """The tokens of an example: every other one shaded, those that count underlined."""
    from rich.text import Text

    shown = Text()
    pairs = enumerate(zip(example.token_ids, example.is_answer, strict=True))
    for is_answer, group in itertools.groupby(pairs, key=lambda pair: pair[1][1]):
        has_marks = is_answer and not is_terminal  # no colors in a file
        shown.append("[[" if has_marks else "")
        for index, (token_id, _) in group:
            shade = "on grey23" if index % 2 else ""
            style = f"{shade} {'underline bold green' if is_answer else 'dim'}"
            shown.append(tokenizer.token(token_id), style=style)
        shown.append("]]" if has_marks else "")
    return shown


def _do_run(do, config_type, path, overrides, resume, **fields):
    """Do a run with fields of a file, or those that it had, and those given.

    Returns:
        The model and the run.
    """
    from keras_gpt import runs, training

    if path is None and resume and fields["output"]:
        kept = Path(fields["output"], runs.CONFIG_FILE)
        path = kept if kept.is_file() else None
    # paths not as overrides: they are no YAML
    config = config_type.from_yaml(path, overrides, **fields)
    lm = do(config, resume=resume)
    if not training.join_hosts():
        raise typer.Exit  # another process says what was reached
    for name, value in runs.read_result(config.output).items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        print(f"{name}: {shown}")
    return lm, config


def _free_folder(folder):
    """The folder, or the first free one with a number behind."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
