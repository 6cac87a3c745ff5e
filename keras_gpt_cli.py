"""The `keras-gpt` command: each subcommand calls one public function.

It is a module of its own, beside the package, because to import the package is to
import Keras and its backend: `--help` needn't wait for that, and what TensorFlow
prints meanwhile can be hidden.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import shutil
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

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

SOURCES_HELP = (
    "A folder of a run, of a saved model or of Hugging Face's format, a .gguf file, "
    "hf://owner/name, keras_hub://preset, or smollm2."
)
Model = Annotated[str, typer.Argument(help=SOURCES_HELP)]
Dtype = Annotated[
    str | None,
    typer.Option(help="Such as float32, bfloat16 or mixed_bfloat16."),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


class Weights(StrEnum):
    """What the weights are kept in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


class Format(StrEnum):
    """What other libraries read."""

    HUGGINGFACE = "huggingface"
    GGUF = "gguf"


class Flavour(StrEnum):
    """Which servers run an exported model."""

    STOCK = "stock"
    XLA = "xla"


StoredWeights = Annotated[
    Weights | None,
    typer.Option(help="Fewer bits take less memory; int8 changes answers slightly."),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Lower is safer, higher is wilder, 0 is greedy. "
        "\\[default: the model's, or 0.8]"
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        help="Sample from the likeliest so many; 0 for all. "
        "\\[default: the model's, or 40]"
    ),
]
TopP = Annotated[float | None, typer.Option(help="Sample from this much probability.")]
MinP = Annotated[
    float | None,
    typer.Option(help="Sample from what is this likely beside the likeliest."),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1, repetition becomes rarer.")
]

NumBeams = Annotated[int, typer.Option(help="Above 1, beam search.")]
BatchSize = Annotated[int, typer.Option(help="Texts at once.")]

QUICKSTART_PROMPT = "The string module "
SAMPLE_TOKENS = 4000  # of the embedded corpus, to see what fewer bits cost
INTERRUPTED = 130  # how Typer exits after Ctrl-C
SHOWN_TOKENS = 8  # special tokens that info names


@app.command()
def quickstart(
    corpus: Annotated[str, typer.Option(help=CORPUS_HELP)] = "embedded",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the run. \\[default: runs/quickstart]"),
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
        int | None, typer.Option(help="\\[default: 4096; characters: all]")
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
        int | None, typer.Option(help="Processes. \\[default: one for each core]")
    ] = None,
    overwrite: Overwrite = False,
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
    _print_result(runs.read_result(run_config.output))
    _note(f'Try it: keras-gpt generate {run_config.output} "Once"')


@app.command()
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
        typer.Argument(
            metavar="[NAME=VALUE]...",
            help="Fields of the run, for example epochs=3 lora_rank=32, or "
            "lora_rank=0 to train all weights; `keras_gpt.runs.FinetuneConfig` lists "
            "them.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with fields of the run.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the stopped run in the folder."),
    ] = False,
) -> None:
    """Teach a pretrained model a task from examples, by LoRA or in all its weights."""
    _import_quietly()
    from keras_gpt import runs

    run_config = runs.FinetuneConfig.from_yaml(config, overrides or [])
    # not as overrides: a path is no YAML
    run_config = dataclasses.replace(run_config, model=model, data=data, output=output)
    lm = runs.finetune(run_config, resume=resume)
    _print_result(runs.read_result(output))
    how = {
        "summarize": f"summarize {output} --file TEXT",
        "translate": f"translate {output} 'Good morning' --source en --target de",
        "chat": f"chat {output}",
    }
    [task] = [*lm.tasks, "complete"][:1]
    _note(f"Try it: keras-gpt {how.get(task, f'generate {output} PROMPT')}")


@app.command()
def preview(
    model: Model,
    data: Annotated[str, typer.Argument(help="JSON Lines or Parquet of examples.")],
    count: Annotated[int, typer.Option(help="Examples to show.")] = 3,
    sequence_length: Annotated[
        int, typer.Option(help="Tokens that an example may have.")
    ] = 512,
    instruction: Annotated[
        str | None, typer.Option(help="What a chat model is told before the question.")
    ] = None,
) -> None:
    """Show examples as the model will see them: what it learns is underlined."""
    _import_quietly()
    from rich.console import Console

    from keras_gpt import tasks

    lm = _load(model)
    if instruction is not None:
        lm.tasks = {name: {"instruction": instruction} for name in tasks.TASKS}
    examples, about = tasks.read_examples(lm, data, sequence_length)
    console = Console(highlight=False, soft_wrap=True)
    for number, example in enumerate(examples[:count], 1):
        console.rule(f"example {number}: {len(example.token_ids)} tokens", align="left")
        console.print(_color_tokens(lm.tokenizer, example, console.is_terminal))
    lengths = sorted(len(example.token_ids) for example in examples)
    learned = sum(example.num_answer_tokens for example in examples)
    _print_table(
        {
            "examples": f"{len(examples):,}",
            "tokens": f"{sum(lengths):,}, of which {learned:,} are learned",
            "tokens of an example": f"{lengths[0]} to {lengths[-1]}, "
            f"median {lengths[len(lengths) // 2]}",
            "shortened": f"{about['num_shortened']:,}",
            "tasks": ", ".join(about["tasks"]),
        }
    )


Texts = Annotated[
    str | None, typer.Argument(help="The text; read from standard input if -")
]
TextFile = Annotated[
    Path | None,
    typer.Option("--file", help="A text file, or JSON Lines with the field of a task."),
]


@app.command()
def summarize(
    model: Model,
    text: Texts = None,
    file: TextFile = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of it.")] = 64,
    num_beams: NumBeams = 1,
    instruction: Annotated[
        str | None, typer.Option(help="What a chat model is told instead.")
    ] = None,
    lookup_tokens: Annotated[
        int,
        typer.Option(
            help="Guess so many tokens from the text: the same, in fewer passes."
        ),
    ] = 0,
    batch_size: BatchSize = 8,
    dtype: Dtype = None,
    weights: StoredWeights = None,
) -> None:
    """Summarize a text, or each text of a file of JSON Lines."""
    texts = _read_texts(text, file, "text")
    _import_quietly()
    lm = _load(model, dtype, weights)
    if instruction is not None:
        lm.tasks.setdefault("summarize", {})["instruction"] = instruction
    controls = _beams(num_beams) or _given(lookup_tokens=lookup_tokens or None)
    with _progress("summarizing", len(texts)) as on_progress:
        summaries = lm.summarize(
            texts,
            max_new_tokens,
            batch_size=batch_size,
            on_progress=on_progress,
            **controls,
        )
    print("\n".join(summaries))


@app.command()
def translate(
    model: Model,
    text: Texts = None,
    source: Annotated[str, typer.Option(help="Language of the text.")] = "en",
    target: Annotated[str, typer.Option(help="Language to translate to.")] = "de",
    file: TextFile = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a part.")] = 128,
    num_beams: NumBeams = 1,
    batch_size: BatchSize = 8,
    dtype: Dtype = None,
    weights: StoredWeights = None,
) -> None:
    """Translate a text, or each text of a file of JSON Lines."""
    texts = _read_texts(text, file, "source")
    _import_quietly()
    lm = _load(model, dtype, weights)
    with _progress("translating", len(texts)) as on_progress:
        translations = lm.translate(
            texts,
            max_new_tokens,
            source=source,
            target=target,
            batch_size=batch_size,
            on_progress=on_progress,
            **_beams(num_beams),
        )
    print("\n".join(translations))


@app.command()
def generate(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Argument(help="Text to continue; read from standard input if -"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to add.")] = 200,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    num_beams: NumBeams = 1,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends it; may be repeated.")
    ] = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    weights: StoredWeights = None,
) -> None:
    """Continue a text."""
    _import_quietly()
    if prompt == "-":
        prompt = sys.stdin.read()
    lm = _load(model, dtype, weights)
    if num_beams != 1:
        controls = _given(repetition_penalty=repetition_penalty)
        text = lm.generate(
            prompt or "",
            max_new_tokens,
            num_beams=num_beams,
            stop=stop or (),
            **controls,
        )
        print((prompt or "") + text)
        return
    _stream(
        lm,
        prompt or "",
        max_new_tokens=max_new_tokens,
        stop=stop or (),
        seed=seed,
        **_sampling(temperature, top_k, top_p, min_p, repetition_penalty),
    )


@app.command()
def chat(
    model: Model,
    system: Annotated[
        str | None, typer.Option(help="System prompt: what the model shall be.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Answer this one message and end.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens an answer.")] = 512,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Annotated[
        int, typer.Option(help="The same seed gives the same answers.")
    ] = 0,
    dtype: Dtype = None,
    weights: StoredWeights = None,
) -> None:
    """Talk with a model; /help lists what can be done meanwhile.

    Without a terminal, each line of standard input is a message, and answers go to
    standard output.
    """
    from rich.console import Console

    import keras_gpt_chat

    console = Console()
    is_terminal = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    with console.status("Loading the model"):
        _import_quietly()
        lm = _load(model, dtype, weights)
    if is_terminal:
        screen = keras_gpt_chat.TerminalScreen(console)
    else:
        screen = keras_gpt_chat.PlainScreen()
    session = keras_gpt_chat.ChatSession(
        lm,
        screen,
        system=system,
        max_new_tokens=max_new_tokens,
        seed=seed,
        **_sampling(temperature, top_k, top_p, min_p, repetition_penalty),
    )
    if is_terminal:
        screen.note(keras_gpt_chat.describe_model(lm, model))
        keras_gpt_chat.run_terminal(session)
        return
    keras_gpt_chat.run_lines(session, sys.stdin if prompt is None else [prompt])
    if session.has_failed:
        raise typer.Exit(2)


@app.command()
def evaluate(
    model: Model,
    file: Annotated[
        str | None,
        typer.Option(help=CORPUS_HELP + " \\[default: the run's validation data]"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="JSON Lines or Parquet with examples of a task: ROUGE of summaries, "
            "BLEU and chrF of translations; or the name of a task of lm-eval."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only so many examples of the task.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the results of the task.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer to the task.")
    ] = None,
    num_beams: NumBeams = 1,
    batch_size: BatchSize = 8,
    text_field: TextField = "text",
    encoding: Encoding = "utf-8",
    dtype: Dtype = None,
    weights: StoredWeights = None,
) -> None:
    """Measure how well a model predicts text, or does a task.

    Of a text: loss, perplexity, bits per byte.
    """
    _import_quietly()
    from keras_gpt import data, runs

    if task is not None:
        lm = _load(model, dtype, weights)
        if Path(task).suffix not in (".jsonl", ".gz", ".parquet"):
            _evaluate_harness(lm, task, limit, batch_size, output)
            return
        _evaluate_task(
            lm,
            task,
            output,
            limit=limit,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            **_beams(num_beams),
        )
        return

    if file is None and not (Path(model) / runs.CONFIG_FILE).is_file():
        raise ValueError(
            f"{model} is no run, which has validation data. Name a text with --file."
        )
    lm = _load(model, dtype, weights)
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
    model: Model,
    revision: Revision = None,
) -> None:
    """Say what a model is: architecture, parameters, tokenizer, origin, training.

    Of other libraries' models it reads no weights.
    """
    _import_quietly()
    import keras

    from keras_gpt import GPT, checkpoints, runs

    if _is_ours(model):
        lm = _load(model)
        rows = _describe(lm, lm.model, lm.model.dtype_policy.name)
    else:
        checkpoint = checkpoints.find(model, revision=revision)
        with keras.StatelessScope(initialize_variables=False):
            gpt = GPT(checkpoint.config)  # shapes alone, no memory
        rows = _describe(checkpoint, gpt)
    if (Path(model) / runs.RESULT_FILE).is_file():
        rows.update(runs.read_result(model))
    _print_table(rows)


@app.command("import")
def import_model(
    source: Model,
    output: Annotated[Path, typer.Argument(help="Folder for the model.")],
    dtype: Dtype = None,
    weights: StoredWeights = None,
    revision: Revision = None,
    overwrite: Overwrite = False,
) -> None:
    """Bring a pretrained model into a folder of keras_gpt's own format."""
    _check_free(output, overwrite)
    _import_quietly()
    from rich.console import Console

    is_int8 = weights == Weights.INT8
    rows = {}
    with Console(stderr=True).status("Loading the model") as status:
        lm = _load(source, dtype, None if is_int8 else weights, revision, merge=True)
        if is_int8:
            status.update("Measuring what int8 saves and costs")
            rows = _quantize(lm)
        status.update("Writing")
        lm.save(output)
    _print_table({**_describe(lm, lm.model, lm.model.dtype_policy.name), **rows})
    how = f"keras-gpt generate {output} 'Once upon a time'"
    if lm.chat_template is not None:
        how = f"keras-gpt chat {output}"
    _note(f"Wrote it to {output}. What to type next: {how}")


@app.command()
def write(
    model: Model,
    output: Annotated[
        Path, typer.Argument(help="A folder, or for GGUF a file that ends in .gguf.")
    ],
    format_: Annotated[
        Format | None,
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
    overwrite: Overwrite = False,
) -> None:
    """Write a model for Transformers and vLLM (huggingface) or llama.cpp (gguf)."""
    format_ = format_ or ("gguf" if output.suffix == ".gguf" else "huggingface")
    if format_ == Format.GGUF and output.suffix != ".gguf":
        raise ValueError(
            f"A GGUF file's name ends in .gguf. Received: {output}. Try {output}.gguf."
        )
    _check_free(output, overwrite)
    _import_quietly()
    lm = _load(model, merge=True)
    if format_ == Format.GGUF:
        lm.save_gguf(output, **_given(dtype=dtype))
    else:
        lm.save_huggingface(output, **_given(dtype=dtype))
    _note(f"Wrote {_size_on_disk(output) / 1e6:,.1f} MB to {output}.")


@app.command()
def export(
    model: Model,
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
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 64,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(help="Longest prompt. \\[default: the model's context]"),
    ] = None,
    weights: Annotated[
        Weights | None,
        typer.Option(help="Fewer bits take less room on disk, not in memory."),
    ] = None,
    flavour: Annotated[
        Flavour,
        typer.Option(help="xla only for servers started with an XLA flag."),
    ] = Flavour.STOCK,
    batch_sizes: Annotated[
        list[int] | None,
        typer.Option(
            "--batch-size",
            help="Numbers of rows to warm the server up with; give it several times. "
            "\\[default: 1, 8, 32]",
        ),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Write a SavedModel for TensorFlow Serving: text in, text out."""
    # TensorFlow makes the graph, whatever trained the model
    os.environ["KERAS_BACKEND"] = "tensorflow"
    _import_quietly()
    lm = _load(model, dtype, revision=revision, merge=True)
    folder = lm.export(
        path,
        next_version=next_version,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        weights=weights and str(weights),
        flavour=str(flavour),
        seed=seed,
        **_given(batch_sizes=batch_sizes),
        **_sampling(temperature, top_k, top_p, min_p, repetition_penalty),
    )
    _note(
        f"How to serve and ask it: {folder / 'README.md'}. Its signatures: "
        "serving_default, generate, generate_ids, score, tokenize."
    )


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
    except SystemExit as error:
        if error.code == INTERRUPTED:
            hint = ""
            if sys.argv[1:2] in (["train"], ["quickstart"]):
                hint = " It goes on with `keras-gpt train --resume --output FOLDER`."
            elif sys.argv[1:2] == ["finetune"]:
                hint = " It goes on with --resume."
            print(f"\nStopped.{hint}", file=sys.stderr)
        raise


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


def _is_ours(model):
    """Whether a folder is a run's, a model's of `save`, or one without any model."""
    from keras_gpt.language_model import CONFIG_FILE, is_saved

    folder = Path(model)
    is_empty = folder.is_dir() and not (folder / CONFIG_FILE).is_file()
    return is_empty or is_saved(folder)


def _load(model, dtype=None, weights=None, revision=None, merge=False):
    """The model, of any source; a folder without one gets the error about runs.

    With `merge` an adapter becomes a part of the weights, as what is written needs it.
    """
    from keras_gpt import LanguageModel, training

    if weights in (Weights.FLOAT32, Weights.BFLOAT16):
        if dtype not in (None, str(weights)):
            raise ValueError(
                "`weights` must be the `dtype` or int8. Received: "
                f"weights={weights}, dtype={dtype}. Give one of them."
            )
        dtype = str(weights)
    if _is_ours(model):
        lm = LanguageModel.load(model, dtype=dtype)
    else:
        lm = LanguageModel.from_pretrained(model, dtype=dtype, revision=revision)
    if merge and training.has_lora(lm.model):
        lm.merge_adapter()
    if weights == Weights.INT8:
        lm.quantize("int8")
    return lm


def _evaluate_task(lm, task, output, **options):
    """Show how well a model does the task of a file of examples."""
    from keras_gpt import evaluation
    from keras_gpt.files import write_json

    with _progress("answering", options["limit"]) as on_progress:
        result = evaluation.evaluate_task(lm, task, on_progress=on_progress, **options)
    rows = {
        "task": f"{result.task}, {result.num_examples:,} examples",
        "loss of the answers": f"{result.loss:.4f} nats per token",
        "perplexity": f"{result.perplexity:.2f}",
        "bits per byte": f"{result.bits_per_byte:.4f}",
    }
    for metric, value in result.scores.items():
        rows[metric] = f"{value:.2f}"
        if metric in result.intervals:
            low, high = result.intervals[metric]
            rows[metric] += f" (95%: {low:.2f} to {high:.2f})"
    for metric, signature in result.signatures.items():
        rows[f"{metric} signature"] = signature
    _print_table(rows)
    if output is not None:
        write_json(output, dataclasses.asdict(result))
        _note(f"Wrote the results and what the model wrote to {output}.")


def _evaluate_harness(lm, task, limit, batch_size, output):
    """Show how well a model does a task of lm-eval."""
    from keras_gpt import evaluation
    from keras_gpt.files import write_json

    model = evaluation.lm_eval_model(lm, batch_size)
    import lm_eval

    results = lm_eval.simple_evaluate(model, tasks=[task], limit=limit)
    for name, found in results["results"].items():
        metrics = {k: v for k, v in found.items() if isinstance(v, int | float)}
        _print_table(
            {"task": name, **{k.removesuffix(",none"): v for k, v in metrics.items()}}
        )
    if output is not None:
        write_json(output, results["results"])
        _note(f"Wrote the results to {output}.")


def _read_texts(text, file, field):
    """The texts that a command is given: one, or those of a file."""
    if (text is None) == (file is None):
        raise ValueError("Give a text, or - for standard input, or --file; not both.")
    if text is not None:
        return [sys.stdin.read() if text == "-" else text]
    if file.suffix not in (".jsonl", ".parquet"):
        return [file.read_text(encoding="utf-8")]
    from keras_gpt import data

    texts = []
    for place, record in data.read_records(file):
        if not isinstance(record.get(field), str):
            raise ValueError(f"{place}: the field {field!r} is missing or no text.")
        texts.append(record[field])
    return texts


@contextlib.contextmanager
def _progress(what, total):
    """A progress bar on standard error; gives the function that moves it on."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)

        def advance(count):
            progress.advance(task, count)
            # a long text is several prompts
            completed = progress.tasks[task].completed
            if total is not None and completed > total:
                progress.update(task, total=completed)

        yield advance


def _color_tokens(tokenizer, example, is_terminal):
    """The tokens of an example: every other one shaded, those that count underlined."""
    from rich.text import Text

    shown = Text()
    pairs = enumerate(zip(example.token_ids, example.is_answer, strict=True))
    for is_answer, group in itertools.groupby(pairs, key=lambda pair: pair[1][1]):
        has_marks = is_answer and not is_terminal  # no colors in a file
        shown.append("[[" if has_marks else "")
        for index, (token_id, _) in group:
            style = ("on grey23" if index % 2 else "") + (
                " underline bold green" if is_answer else " dim"
            )
            shown.append(tokenizer.token(token_id), style=style)
        shown.append("]]" if has_marks else "")
    return shown


def _given(**options):
    """The options that aren't `None`: the others keep their defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _beams(num_beams):
    """The control of beam search, where there is more than one."""
    return {"num_beams": num_beams} if num_beams > 1 else {}


def _sampling(temperature, top_k, top_p, min_p, repetition_penalty):
    """Controls of sampling; those not given are the model's own defaults."""
    controls = _given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    if top_k == 0:
        controls["top_k"] = None
    return controls


def _describe(found, gpt, dtype=None):
    """Rows about a `LanguageModel` or `Checkpoint` with this `GPT`."""
    tokenizer, special = found.tokenizer, list(found.tokenizer.special_tokens)
    shown = ", ".join(special[:SHOWN_TOKENS]) or "none"
    if len(special) > SHOWN_TOKENS:
        shown += f" and {len(special) - SHOWN_TOKENS:,} more"
    return {
        **{f"source {name}": value for name, value in found.source.items()},
        "parameters": f"{gpt.count_params():,}",
        **_given(dtype=dtype, quantization=gpt.quantization),
        **gpt.config.to_dict(),
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} ids",
        "special tokens": shown,
        "stop tokens": ", ".join(map(tokenizer.token, found.stop_ids)) or "none",
        "chat template": "yes" if found.chat_template else "no",
        "FLOPs per token": f"{gpt.count_flops_per_token(training=False):,}",
    }


def _print_table(rows):
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))  # square brackets are no markup here
    Console(highlight=False).print(table)


def _print_result(result):
    """What a run reached, a line each."""
    for name, value in result.items():
        print(
            f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}"
        )


def _quantize(lm):
    """Keep the weights in int8; returns rows about what that saves and costs."""
    from keras_gpt import data

    sample = [data.embedded_sample(lm.tokenizer, SAMPLE_TOKENS)]
    dtype = lm.model.dtype_policy.name
    large, before = _num_bytes(lm.model), lm.evaluate_ids(sample).loss
    lm.quantize("int8")
    small, after = _num_bytes(lm.model), lm.evaluate_ids(sample).loss
    return {
        "weights": f"{large / 1e6:,.1f} MB as {dtype}, {small / 1e6:,.1f} MB as int8",
        f"loss on {len(sample[0]):,} tokens": (
            f"{before:.4f} as {dtype}, {after:.4f} as int8, {after - before:+.4f} "
            "nats per token of the embedded corpus"
        ),
    }


def _num_bytes(model):
    """Size of the weights, in memory as on disk."""
    import ml_dtypes  # noqa: F401  # from here on NumPy knows bfloat16
    import numpy as np

    return sum(
        math.prod(variable.shape) * np.dtype(variable.dtype).itemsize
        for variable in model.variables
    )


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
