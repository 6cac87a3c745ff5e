"""Several runs beside each other: how far each is, their curves in one picture."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from keras_gpt.files import atomic_path, is_locked, read_json
from keras_gpt.runs import report
from keras_gpt.training.state import DAMAGED


@dataclass(frozen=True)
class Status:
    """How far a run is; `None` is what its folder doesn't tell yet.

    Attributes:
        folder: The run's.
        state: `"running"`, `"stopped"` or `"done"`.
        step: Optimizer steps done; of a stopped run those from which it goes on.
        steps: Of the whole run.
        best_loss: The lowest validation loss.
        tokens_per_second: Up to the last validation.
        seconds_left: Of a running one.
    """

    folder: Path
    state: str
    step: int
    steps: int | None = None
    best_loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None


def find_runs(folder: str | Path) -> list[Path]:
    """The folders of all runs in a folder, by name, or itself if it is one.

    Raises:
        FileNotFoundError: There is none.
    """
    found = list(_walk(Path(folder)))
    if not found:
        raise FileNotFoundError(f"There is no run in {folder}.")
    return found


def _walk(folder) -> Iterator[Path]:
    if (folder / report.CONFIG_FILE).is_file():
        yield folder
    elif folder.is_dir():
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _walk(inner)


def read_status(folder: str | Path) -> Status:
    """Read from a run's folder how far it is; what is damaged counts as missing."""
    folder = Path(folder)
    fields, log, result = {}, {}, {}
    with contextlib.suppress(OSError, TypeError, ValueError, yaml.YAMLError):
        text = (folder / report.CONFIG_FILE).read_text(encoding="utf-8")
        fields = dict(yaml.safe_load(text))
    with contextlib.suppress(OSError, ValueError):
        log = report.read_log(folder / report.LOG_FILE)
    with contextlib.suppress(OSError, TypeError, ValueError):
        result = dict(read_json(folder / report.RESULT_FILE))
    states = _read_states(folder)
    step, steps = states[-1][0], fields.get("steps")
    speeds = log.get("tokens_per_second", [])
    left = None
    if is_locked(folder):
        state = "running"
        step, left = _read_pace(folder, states, steps)
    else:
        # not of a run that was lengthened since
        end = [log["step"][-1], log["val_loss"][-1]] if log else None
        is_done = end == [step, result.get("last_validation_loss")]
        state = "done" if is_done else "stopped"
    return Status(
        folder,
        state,
        step,
        steps,
        best_loss=float(min(log["val_loss"])) if log else None,
        tokens_per_second=float(speeds[-1]) if len(speeds) else None,
        seconds_left=left,
    )


def _read_states(folder):
    """Step and time of the states in a folder, after two of the run's beginning."""
    begun = (folder / report.CONFIG_FILE).stat().st_mtime
    found = [(0, begun), (0, begun)]
    for name in (report.PREVIOUS_STATE_FILE, report.STATE_FILE):
        with (
            contextlib.suppress(*DAMAGED),
            (folder / name).open("rb") as file,
            np.load(file) as arrays,
        ):
            found.append((int(arrays["step"]), (folder / name).stat().st_mtime))
    return found


def _read_pace(folder, states, steps):
    """The step of a running run, and the seconds that are left, or `None`.

    The pace is that since the state before the last, or since it was started, and so
    counts validations too. The file `run.yaml` is written when a run is started.
    """
    path = folder / report.STEPS_FILE
    points = report.read_step_losses(path)
    if not len(points):
        return states[-1][0], None
    step, now = int(points[-1, 0]), path.stat().st_mtime
    begun = states[0][1]
    before, then = states[-1] if states[-1][1] <= begun else states[-2]
    if step <= before or steps is None:
        return max(step, states[-1][0]), None
    pace = (now - max(then, begun)) / (step - before)
    return step, max(0.0, (steps - step) * pace - (time.time() - now))


def plot_runs(
    folders: Sequence[str | Path], path: str | Path, *, in_bits: bool = False
) -> None:
    """Draw the losses of several runs over their steps into one picture.

    Args:
        folders: Of the runs.
        path: The picture, whose name ends in `.png` or `.svg`.
        in_bits: Whether to draw bits per byte, which runs with different tokenizers
            can be compared by, instead of nats per token.

    Raises:
        ValueError: The picture's name ends otherwise, or a run has no losses yet.
    """
    if Path(path).suffix.lower() not in (".png", ".svg"):
        raise ValueError(f"The picture's name ends in .png or .svg. Received: {path}.")
    figure = draw_runs([Path(folder) for folder in folders], in_bits=in_bits)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def draw_runs(folders: Sequence[Path], *, in_bits: bool = False):
    """What `plot_runs` draws, as a Matplotlib figure."""
    figure, axes = report.make_axes()
    axes.set_ylabel("bits per byte" if in_bits else "loss (nats per token)")
    names = [folder.absolute().name for folder in folders]
    if len(set(names)) < len(names):
        names = list(map(str, folders))
    for number, (folder, name) in enumerate(zip(folders, names, strict=True)):
        try:
            log = report.read_log(folder / report.LOG_FILE)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder} has no losses to draw: {error} Leave that run out."
            ) from error
        factor = 1.0
        if in_bits:
            if "val_bits_per_byte" not in log:
                raise ValueError(f"{folder} has no bits per byte. Leave that run out.")
            factor = log["val_bits_per_byte"][0] / log["val_loss"][0]
        steps, losses = report.read_training_losses(folder, log).T
        color = f"C{number}"  # Matplotlib begins anew behind its last
        thin = {"linewidth": 0.8, "alpha": 0.4, "zorder": 1}
        axes.plot(steps, factor * losses, color=color, **thin)
        best = factor * min(log["val_loss"])
        axes.plot(
            log["step"],
            factor * log["val_loss"],
            "o-",
            color=color,
            markersize=3,
            label=f"{name}: {best:.3f}",
        )
    axes.legend(
        title="validation, best (thin: training)",
        loc="upper right",
        framealpha=0.9,
        edgecolor="none",
    )
    return figure
