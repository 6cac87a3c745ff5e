"""The `keras-gpt` command: each subcommand calls one public function.

It stands beside the package keras_gpt, because to import that is to import Keras and
its backend: `--help` needn't wait for them.
"""

import importlib.metadata
import os
import sys
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
