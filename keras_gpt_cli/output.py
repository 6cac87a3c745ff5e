"""What commands show."""

import contextlib
import shlex
import sys


def print_table(rows):
    """Rows of a name and a value."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")  # a long path is to be read whole
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))  # square brackets are no markup here
    Console(highlight=False).print(table)


def stream(lm, prompt, **controls):
    """How a model answers a prompt, piece by piece, behind one that it continues."""
    from keras_gpt import tasks

    print(prompt if lm.task == "generate" else "", end="", flush=True)
    for piece in tasks.stream_answer(lm, prompt, **controls):
        print(piece, end="", flush=True)
    print()


def note(message):
    """A line that is no result, on standard error."""
    print(message, file=sys.stderr)


def suggest(command, folder, *words):
    """Say what to type next; a long text is shortened."""
    words = [str(folder), *(word[:200] for word in words)]
    note(f"Try it: {shlex.join(['keras-gpt', command, *words])}")


@contextlib.contextmanager
def progress(what, total):
    """A progress bar on standard error; gives the function that moves it on."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(count):
            bar.advance(task, count)
            # a long text is several prompts
            completed = bar.tasks[task].completed
            if total is not None and completed > total:
                bar.update(task, total=completed)

        yield advance
