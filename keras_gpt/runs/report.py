"""What a run's folder says of it: names of its files, log, loss curve, result."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

from keras_gpt.files import atomic_path, read_json, write_json

CONFIG_FILE = "run.yaml"
STATE_FILE = "last.npz"
LOG_FILE = "log.csv"
PLOT_FILE = "loss.png"
RESULT_FILE = "result.json"
EVENTS_FOLDER = "events"
DATA_FOLDER = "data"


def read_log(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of a run's `log.csv`, empty cells as NaN."""
    table = np.genfromtxt(path, delimiter=",", names=True, encoding="utf-8")
    return {name: np.atleast_1d(table[name]) for name in table.dtype.names or ()}


def cut_log(path: Path, step: int) -> float:
    """Drop what a run noted behind the step from which it goes on.

    Args:
        path: The run's `log.csv`.
        step: The last step to keep.

    Returns:
        The lowest validation loss that remains, or infinity.
    """
    if not path.is_file():
        return math.inf
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or []
        # a row that was being written when the run was killed has no last column
        whole = [row for row in reader if None not in row.values()]
    rows = [row for row in whole if int(row["step"]) <= step]
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        if rows:
            writer.writeheader()
        writer.writerows(rows)
    return min((float(row["val_loss"]) for row in rows), default=math.inf)


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
    """What a finished run reached: losses, bits per byte, steps, seconds."""
    return read_json(Path(output) / RESULT_FILE)


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
