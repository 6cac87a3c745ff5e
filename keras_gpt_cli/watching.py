"""Commands that look at runs."""

import datetime
from pathlib import Path
from typing import Annotated

import typer

from keras_gpt_cli.output import note


def runs(
    folder: Annotated[
        Path, typer.Argument(help="A folder with runs in it, however deep.")
    ] = Path("runs"),
) -> None:
    """List runs: state, step, best validation loss, speed and the time that is left.

    A run is `running` while a process has its folder, `done` when it reached its end
    or was stopped early, and `stopped` otherwise: --resume goes on with it. The time
    counts the validations that are to come.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from keras_gpt.runs import find_runs, read_status

    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for name in ("step", "validation loss", "tokens/s", "left"):
        table.add_column(name, justify="right")
    for status in map(read_status, find_runs(folder)):
        left = status.seconds_left
        table.add_row(
            Text(str(status.folder)),
            Text(status.state, style="green" if status.state == "running" else ""),
            f"{status.step:,} of {_show(status.steps, ',')}",
            _show(status.best_loss, ".4f"),
            _show(status.tokens_per_second, ",.0f"),
            "" if left is None else str(datetime.timedelta(seconds=round(left))),
        )
    Console(highlight=False).print(table)


def _show(value, form):
    return "" if value is None else format(value, form)


def plot(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs, or with runs in them."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The PNG or SVG to write.")
    ] = Path("runs.png"),
    bits_per_byte: Annotated[
        bool,
        typer.Option(
            "--bits-per-byte",
            help="Draw bits per byte of text, by which runs with different tokenizers "
            "can be compared, instead of nats per token.",
        ),
    ] = False,
) -> None:
    """Draw the training and validation losses of several runs in one picture."""
    from keras_gpt.runs import find_runs, plot_runs

    found = [run for folder in folders for run in find_runs(folder)]
    plot_runs(found, output, in_bits=bits_per_byte)
    note(f"Drew {len(found)} {'run' if len(found) == 1 else 'runs'} in {output}.")
