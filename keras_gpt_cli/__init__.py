"""The `keras-gpt` command: each subcommand calls one public function.

It stands beside the package keras_gpt, because to import that is to import Keras and
its backend: `--help` needn't wait for them, and what TensorFlow prints meanwhile can be
hidden.
"""

import os
import sys

import typer

from keras_gpt_cli import answering, models, training

INTERRUPTED = 130  # how Typer exits after Ctrl-C

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
for command in (
    training.quickstart,
    training.tokenize,
    training.prepare,
    training.train,
    training.preview,
    training.finetune,
    answering.summarize,
    answering.translate,
    answering.generate,
    answering.chat,
    answering.evaluate,
    models.info,
    models.import_,
    models.write,
    models.export,
):
    app.command(command.__name__.rstrip("_"))(command)


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
            print("\nStopped.", file=sys.stderr)
        raise
