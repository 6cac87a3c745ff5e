"""The `keras-gpt` command: each subcommand calls one public function.

It stands beside the package keras_gpt, because to import that is to import Keras and
its backend: `--help` needn't wait for them.
"""

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_gpt_cli import (
    answering,
    models,
    pictures,
    serving,
    training,
    watching,
)
from keras_gpt_cli.options import Commands

INTERRUPTED = 130  # how Typer exits after Ctrl-C
TRAINING = {"quickstart", "train", "sweep", "finetune"}

app = typer.Typer(
    name="keras-gpt",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    training.quickstart,
    training.tokenize,
    training.prepare,
    training.train,
    training.preview,
    training.sweep,
    training.finetune,
    watching.runs,
    watching.plot,
    answering.summarize,
    answering.translate,
    answering.generate,
    answering.chat,
    answering.score,
    answering.evaluate,
    pictures.attention,
    models.info,
    models.import_,
    models.write,
    models.export,
    serving.serve,
):
    app.command(command.__name__.rstrip("_"))(command)


def _show_version(is_wanted: bool):
    if is_wanted:
        print(f"keras-gpt {importlib.metadata.version('keras-gpt')}")
        raise typer.Exit


@app.callback()
def keras_gpt(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version.",
            is_eager=True,
            callback=_show_version,
        ),
    ] = False,
) -> None:
    """From a text file to a trained, generating GPT.

    On TensorFlow, JAX or PyTorch: choose with the environment variable KERAS_BACKEND.
    """


def start() -> None:
    """`main`, in a process that has its memory in large pages, where it trains.

    A step of training on a processor takes memory and gives it back, up to a gigabyte:
    in pages of 4 kB that is a tenth to a third of its time. The C library asks for
    larger ones if it is told to before the process starts.
    """
    is_training = set(sys.argv[1:2]) & TRAINING
    if is_training and "GLIBC_TUNABLES" not in os.environ and _are_pages_asked_for():
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    main()


def _are_pages_asked_for():
    """Whether Linux gives large pages to those who ask for them."""
    try:
        found = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False
    return "[madvise]" in found


def main() -> None:
    """Run the command; show what a user can mend as one line and exit with 2."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("KERAS_GPT_TRACEBACK"):
            raise
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as error:
        if error.code == INTERRUPTED:
            print("\nStopped.", file=sys.stderr)
        raise
