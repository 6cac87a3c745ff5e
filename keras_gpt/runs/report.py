"""What a run's folder says of it: names of its files, log, loss curve, result."""

import contextlib
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_gpt.files import atomic_path, read_json, write_json
from keras_gpt.language_model import LanguageModel, read_attention

CONFIG_FILE = "run.yaml"
STATE_FILE = "last.npz"
PREVIOUS_STATE_FILE = "previous.npz"
LOG_FILE = "log.csv"
STEPS_FILE = "steps.csv"
PLOT_FILE = "loss.png"
RESULT_FILE = "result.json"
EVENTS_FOLDER = "events"
DATA_FOLDER = "data"

# of a text whose attention is drawn at each validation, and of the model
_PICTURE_TOKENS, _PICTURE_LAYERS = 20, 6


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


def note_loss(path: Path, step: int, loss: float) -> None:
    """Add a row to a run's `steps.csv`: the mean training loss of a few steps."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{step},{loss}\n")


def read_step_losses(path: Path) -> np.ndarray:
    """What a run's `steps.csv` holds: float64 `(points, 2)`, steps and training losses.

    Older runs have no such file, and nothing depends on it: a line that was cut off
    when the machine failed is left out.
    """
    points = []
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    for line in text.splitlines()[1:]:
        with contextlib.suppress(ValueError):
            step, loss = map(float, line.split(","))
            points.append((step, loss))
    return np.array(points).reshape(-1, 2)


def read_training_losses(output: Path, log: dict[str, np.ndarray]) -> np.ndarray:
    """As `read_step_losses`, with the means in the log where there are no others."""
    means = np.stack([log["step"], log["loss"]], axis=-1)
    points = read_step_losses(output / STEPS_FILE)
    if len(points):  # a run of an older version has its means alone, before it went on
        means = means[means[:, 0] < points[0, 0]]
    return np.concatenate([means, points])


def cut_step_losses(path: Path, step: int) -> list[tuple[int, float]]:
    """Drop what a run noted behind the step from which it goes on; return the rest."""
    points = read_step_losses(path).tolist()
    kept = [(int(done), loss) for done, loss in points if done <= step]
    with atomic_path(path) as temporary:
        lines = ["step,loss", *(f"{done},{loss}" for done, loss in kept)]
        temporary.write_text("\n".join([*lines, ""]), "utf-8")
    return kept


def draw_attention(lm: LanguageModel, token_ids: Sequence[int]) -> bytes:
    """A PNG of what a model attends to in the first tokens of a text, in some layers.

    Args:
        lm: The model.
        token_ids: Of the text.
    """
    most = min(_PICTURE_TOKENS, lm.model.config.context_length)
    last = lm.model.config.num_layers - 1
    layers = {round(i * last / (_PICTURE_LAYERS - 1)) for i in range(_PICTURE_LAYERS)}
    return read_attention(lm, token_ids[:most]).draw(sorted(layers))


def plot_losses(output: Path, **options) -> None:
    """Write what `draw_losses` draws as a PNG into a run's folder."""
    figure = draw_losses(output, **options)
    with atomic_path(output / PLOT_FILE) as temporary:
        figure.savefig(temporary, dpi=120)


def make_axes():
    """A Matplotlib figure, and its axes for something over the steps of a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure, axes


def draw_losses(
    output: Path,
    *,
    about: str,
    start: float | None = None,
    tokens_per_byte: float | None = None,
):
    """Draw training and validation loss over the steps of a run.

    Args:
        output: The run's folder, whose name is the title.
        about: What to write below it, before the speed.
        start: The loss of a model that knows nothing, or `None`.
        tokens_per_byte: For a second axis with bits per byte, or `None`.

    Returns:
        A Matplotlib figure.
    """
    log = read_log(output / LOG_FILE)
    points = read_training_losses(output, log)
    if "tokens_per_second" in log:
        about += f" · {np.nanmedian(log['tokens_per_second']):,.0f} tokens/s"

    figure, axes = make_axes()
    axes.set_ylabel("loss (nats per token)")
    axes.plot(*points.T, color="#5b9bd5", linewidth=1, label="training")
    steps, losses = log["step"], log["val_loss"]
    best = int(np.argmin(losses))
    reached = f"validation, best {losses[best]:.3f}"
    if start is not None:
        name = f"knows nothing: ln(vocab_size) = {start:.3f}"
        axes.axhline(start, color="0.4", linewidth=1, linestyle=":", label=name)
    if tokens_per_byte is not None:
        bits = tokens_per_byte / math.log(2)  # per byte, of a nat per token
        reached += f" ({losses[best] * bits:.3f} bits per byte)"
        second = axes.secondary_yaxis(
            "right", functions=(lambda nats: nats * bits, lambda found: found / bits)
        )
        second.set_ylabel("bits per byte")
        second.spines["right"].set_visible(False)
    axes.plot(steps, losses, "o-", color="#c2410c", markersize=4, label=reached)
    axes.set_title(output.absolute().name, loc="left", fontweight="bold", pad=22)
    axes.annotate(
        about,
        (0, 1),
        xytext=(0, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        color="0.35",
        fontsize=9,
    )
    axes.legend(loc="upper right", framealpha=0.9, edgecolor="none")
    return figure
