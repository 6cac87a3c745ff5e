"""Options that several commands share, and what becomes of them."""

import importlib.util
import runpy
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

# the table alone: to import keras_gpt is to import Keras, for which --help can't wait
_PACKAGE = Path(importlib.util.find_spec("keras_gpt").origin).parent
_TABLE = runpy.run_path(str(_PACKAGE / "controls.py"))


def _control(name, help=None):  # noqa: A002
    """The option for a control in the table; checked before a model is loaded."""
    control = _TABLE["CONTROLS"][name]

    def check(value):
        is_off = value is None or (name == "top_k" and value == 0)
        return value if is_off else _TABLE["check_control"](name, value)

    kind = int if control.is_integer else float
    option = typer.Option(help=help or control.help, callback=check)
    return Annotated[kind | None, option]


def _sampling_control(name, help=""):  # noqa: A002
    """The option for a control of which a model may have a default of its own."""
    control = _TABLE["CONTROLS"][name]
    ours = "" if control.default is None else f", or {control.default}"
    return _control(name, f"{control.help} {help}\\[default: the model's{ours}]")


MaxNewTokens = _control("max_new_tokens")
MaxNewTokensOfSummary = _control(
    "max_new_tokens", "Most tokens to add. \\[default: 64, or half of the context]"
)
MaxNewTokensOfPart = _control(
    "max_new_tokens", "Most tokens of a part. \\[default: 128, or half of the context]"
)
MaxNewTokensOfAnswer = _control(
    "max_new_tokens",
    "Most tokens to add. \\[default: 200 to plain text, else the form's]",
)
Seed = _control("seed")
Temperature = _sampling_control("temperature")
TopK = _sampling_control("top_k", "0 is no limit. ")
TopP = _sampling_control("top_p")
MinP = _sampling_control("min_p")
RepetitionPenalty = _sampling_control("repetition_penalty")
NumBeams = Annotated[int, typer.Option(help="Above 1, beam search.", min=1, max=1024)]
Schema = Annotated[
    Path | None, typer.Option(help="JSON file with a schema of which the answer is.")
]
Regex = Annotated[
    str | None, typer.Option(help="What the whole answer matches, such as '[0-9]+'.")
]
Choice = Annotated[
    list[str] | None,
    typer.Option(help="One of the texts that the answer may be; is repeated."),
]
BatchSize = Annotated[int, typer.Option(help="Texts at once.", min=1)]

CORPUS_HELP = (
    "A text file, a folder, JSON Lines or Parquet, also of a storage (s3://...); or "
    "'embedded', the documentation that comes with Python."
)
SOURCES_HELP = (
    "A folder of a run, of a saved model or of Hugging Face's format, a .gguf file, "
    "hf://owner/name, keras_hub://preset, or smollm2."
)
Model = Annotated[str, typer.Argument(help=SOURCES_HELP)]
Dtype = Annotated[
    str | None, typer.Option(help="Such as float32, bfloat16 or mixed_bfloat16.")
]
Adapter = Annotated[
    Path | None,
    typer.Option(help="Folder of an adapter of MODEL, of finetune or of PEFT."),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
TextField = Annotated[
    str, typer.Option(help="Field of JSON Lines or column of Parquet with the text.")
]
Texts = Annotated[
    str | None, typer.Argument(help="The text; read from standard input if -")
]
Answers = Annotated[
    str | None,
    typer.Option(
        "--output",
        help="JSON Lines for the records of --file with their answers; the same "
        "command goes on with a job that was stopped.",
    ),
]
TextFile = Annotated[
    str | None,
    typer.Option(
        "--file",
        help="A text file; or JSON Lines with the field of a task, also of a storage "
        "(s3://...).",
    ),
]


RayAddress = Annotated[
    str | None,
    typer.Option(
        help="Of a running Ray cluster, such as auto. \\[default: RAY_ADDRESS, else a "
        "new one here]"
    ),
]


def _check_encoding(name):
    try:
        "".encode(name)
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"`encoding` must be one that Python knows, such as utf-8 or latin-1. "
            f"Received: {name!r}."
        ) from error
    return name


Encoding = Annotated[
    str, typer.Option(help="Encoding of text files.", callback=_check_encoding)
]


class Weights(StrEnum):
    """What the weights are kept in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"


QUANTIZED = (Weights.INT8, Weights.INT4)


class ProcessOrRay(StrEnum):
    """What answers a file of records, or learns a tokenizer."""

    PROCESS = "process"
    RAY = "ray"


class TokenizingEngine(StrEnum):
    """What tokenizes a corpus."""

    THREADS = "threads"
    RAY = "ray"


class Format(StrEnum):
    """What other libraries read."""

    HUGGINGFACE = "huggingface"
    GGUF = "gguf"


class Flavour(StrEnum):
    """What runs an exported model."""

    STOCK = "stock"
    XLA = "xla"
    OPENVINO = "openvino"


class ServedTask(StrEnum):
    """What an exported model's default signature does."""

    CHAT = "chat"
    SUMMARIZE = "summarize"
    TRANSLATE = "translate"
    GENERATE = "generate"


Engine = Annotated[
    ProcessOrRay,
    typer.Option(help="What writes --output: this process, or workers of Ray."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Of Ray, each with the model. \\[default: one for each GPU, or machine]",
        min=1,
    ),
]
StoredWeights = Annotated[
    Weights | None,
    typer.Option(help="Fewer bits take less memory; int8 and int4 change answers."),
]


class Commands(typer.core.TyperGroup):
    """Commands that say which option was meant, by the names of other libraries too."""

    def invoke(self, ctx):
        """Run a command; its error of an unknown option gets what was meant."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if hasattr(error, "possibilities"):  # Typer's class for it is private
                error.possibilities = _find_meant(error) or error.possibilities
            raise


def _find_meant(error):
    """The options, or fields of a run, that an unknown option may stand for."""
    our_name = runpy.run_path(str(_PACKAGE / "config.py"))["our_name"]
    name = error.option_name.strip("-").replace("-", "_")
    name = our_name(name) or name
    params = {param.name: param for param in error.ctx.command.params}
    if name in params:
        return [params[name].opts[0]]
    return [f"{name}=VALUE"] if "overrides" in params else []


def given(**options):
    """The options that aren't `None`: the others keep their defaults."""
    return {name: value for name, value in options.items() if value is not None}


def form(schema, regex, choice):
    """What an answer must be, as `LanguageModel.generate` takes it."""
    if schema is not None:
        from keras_gpt.files import read_json

        schema = read_json(schema)
    return given(schema=schema, regex=regex, choices=choice or None)


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
