"""What a run's folder says of it: names of its files, log, loss curve, result."""

import csv
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_gpt.files import atomic_path, read_json, write_json

CONFIG_FILE = "run.yaml"
STATE_FILE = "last.npz"
LOG_FILE = "log.csv"
PLOT_FILE = "loss.png"
RESULT_FILE = "result.json"
EVENTS_FOLDER = "events"
DATA_FOLDER = "data"


def read_log(path: str | Path, num_rows: int | None = None) -> dict[str, np.ndarray]:
    """The columns of a run's `log.csv`, a row for each validation, empty cells as NaN.

    Args:
        path: The file.
        num_rows: How many rows to read. Defaults to all.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or has fewer rows.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            names, *rows = csv.reader(file)
        rows = [[_read_cell(cell) for cell in row] for row in rows[:num_rows]]
        log = dict(zip(names, np.array(rows).T, strict=True))
        is_whole = {"step", "loss", "val_loss"} <= log.keys() and np.array_equal(
            log["epoch"], np.arange(num_rows or len(rows))
        )
    except (ValueError, TypeError, KeyError, csv.Error):
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"{path} is damaged: it must have a row for each validation. Put it back "
            "as it was, or start the run anew in another folder."
        )
    return log


def _read_cell(cell):
    return math.nan if cell in ("", "NA") else float(cell)


def cut_log(path: Path, num_rows: int) -> None:
    """Drop what a run noted behind the validation from which it goes on."""
    lines = path.read_bytes().splitlines()[: num_rows + 1] if num_rows else []
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"".join(line + b"\r\n" for line in lines))


class LogFile(keras.callbacks.CSVLogger):
    """A `log.csv` that a run which goes on continues in the same columns."""

    def on_train_begin(self, logs=None):
        """Take the columns from the file, where it has any."""
        super().on_train_begin(logs)
        with Path(self.filename).open(newline="", encoding="utf-8") as file:
            header = next(csv.reader(file), None)
        self.keys = header and header[1:]


def write_result(output: Path, seconds: float) -> None:
    """Note what the run in a folder reached."""
    log = read_log(output / LOG_FILE)
    best = int(np.argmin(log["val_loss"]))
    result = {"validation_loss": float(log["val_loss"][best])}
    if "val_bits_per_byte" in log:  # fine-tuning predicts a part of the text only
        result["validation_bits_per_byte"] = float(log["val_bits_per_byte"][best])
    result |= {
        "best_step": int(log["step"][best]),
        "last_training_loss": float(log["loss"][-1]),
        "last_validation_loss": float(log["val_loss"][-1]),
        "seconds": round(seconds, 1),
    }
    write_json(output / RESULT_FILE, result)


def read_result(output: str | Path) -> dict[str, Any]:
    """What a finished run reached: losses, bits per byte, steps, seconds.

    Raises:
        ValueError: The file is damaged.
    """
    path = Path(output) / RESULT_FILE
    result = read_json(path)
    if not isinstance(result, dict):
        raise ValueError(f"{path} is no run's result. Received: {str(result)[:40]}.")
    return result


def plot_losses(log_path: str | Path, path: str | Path) -> None:
    """Draw training and validation loss over the steps of a run as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    log = read_log(log_path)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = log["step"]
    axes.plot(steps, log["loss"], marker=".", label="training")
    axes.plot(steps, log["val_loss"], marker=".", label="validation")
    best = int(np.argmin(log["val_loss"]))
    axes.annotate(
        f"best {log['val_loss'][best]:.3f}",
        (steps[best], log["val_loss"][best]),
        textcoords="offset points",
        xytext=(0, 10),
        ha="right",
    )
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
