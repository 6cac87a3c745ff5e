"""Options that several commands share, and what becomes of them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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
Texts = Annotated[
    str | None, typer.Argument(help="The text; read from standard input if -")
]
TextFile = Annotated[
    Path | None,
    typer.Option("--file", help="A text file, or JSON Lines with the field of a task."),
]


def given(**options):
    """The options that aren't `None`: the others keep their defaults."""
    return {name: value for name, value in options.items() if value is not None}


def beams(num_beams):
    """The control of beam search, where there is more than one."""
    return {"num_beams": num_beams} if num_beams > 1 else {}


def sampling(temperature, top_k, top_p, min_p, repetition_penalty):
    """Controls of sampling; those not given are the model's own defaults."""
    controls = given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    if top_k == 0:
        controls["top_k"] = None
    return controls
