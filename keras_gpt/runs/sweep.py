"""Many runs that differ in some fields, in search of the lowest loss."""

import csv
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from keras_gpt.files import atomic_path, locked, read_json, write_json
from keras_gpt.installed import require
from keras_gpt.runs import report
from keras_gpt.runs.config import RunConfig
from keras_gpt.runs.settings import read_number
from keras_gpt.runs.training import train

SWEEP_FILE = "sweep.json"
JOURNAL_FILE = "journal.log"
TRIALS_FILE = "trials.csv"
PICTURE_FILE = "sweep.png"
_TRIALS = 20
# with which losses of tokens can't be compared, but those of bytes can
_OF_TOKENIZER = ("tokenizer", "vocab_size", "corpus", "data")


@dataclass(frozen=True)
class Trial:
    """A run of a sweep.

    Attributes:
        folder: The run's.
        values: Of the fields that differ, by name.
        loss: The lowest validation loss, or bits per byte if tokenizers differ;
            `None` of a run that failed.
    """

    folder: Path
    values: dict[str, Any]
    loss: float | None


def sweep(
    config: RunConfig,
    over: Mapping[str, str],
    output: str | Path,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    console=None,
) -> list[Trial]:
    """Do runs that differ in some fields, chosen by Optuna, each in its folder.

    Called again with the same arguments it goes on where it was stopped, with the run
    that was under way first, and ends as if it never had been; with more `trials` it
    does more. The folder gets `trials.csv` and `sweep.png`.

    Args:
        config: What the runs have in common.
        over: For names of fields, such as `"model.num_layers"`, what to choose from:
            `"2,4,6"`, or `"1e-4:1e-2"`, evenly, or `"1e-4:1e-2:log"`, evenly in the
            logarithm; integers between integers. Lists alone are gone through whole,
            in any order; else what went well before is tried more (TPE).
        output: The folder.
        trials: Runs to do in all. Defaults to those of all lists, and to 20.
        minutes: After which no further run is begun. Defaults to `None`: no limit.
        console: As of `runs.train`.

    Returns:
        The runs that are over, the best first.

    Raises:
        ImportError: Optuna is not there.
        ValueError: A field or its values are wrong, or the folder has another sweep.

    References:
        - [Akiba et al., 2019](https://arxiv.org/abs/1907.10902), Optuna
        - [Bergstra et al., 2011](https://papers.nips.cc/paper/4443), TPE
    """
    require("sweep", "A sweep", "optuna")
    import optuna

    output = Path(output)
    spaces = {name: _read_space(name, text) for name, text in over.items()}
    if not spaces:
        raise ValueError("`over` must name a field of the run. Received none.")
    first = {name: _values_of(space)[0] for name, space in spaces.items()}
    _with_values(config, first)  # a wrong name or value is found here
    are_lists = all(isinstance(space, list) for space in spaces.values())
    grid = list(product(*spaces.values())) if are_lists else []
    trials = trials or len(grid) or _TRIALS
    stop = time.monotonic() + 60 * (minutes or math.inf)
    by_bytes = any(name in _OF_TOKENIZER for name in over)
    loss_name = "validation_bits_per_byte" if by_bytes else "validation_loss"

    def do(trial):
        values = {name: trial.params[name] for name in spaces}
        folder = output / f"trial-{trial.number:03d}"
        has_begun = (folder / report.CONFIG_FILE).is_file()
        console.print(f"{folder}: {_show(values)}", highlight=False, soft_wrap=True)
        try:
            run = _with_values(config, {**values, "output": str(folder)})
            train(run, resume=has_begun, console=console)
        except ValueError as error:  # it doesn't fit, or the loss became infinite
            console.print(f"{folder} failed: {error}", highlight=False, soft_wrap=True)
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            return
        study.tell(trial.number, report.read_result(folder)[loss_name])

    console = console or Console(stderr=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with locked(output):
        _claim(output / SWEEP_FILE, config, over)
        journal = optuna.storages.journal.JournalFileBackend(str(output / JOURNAL_FILE))
        study = optuna.create_study(
            study_name="sweep",
            storage=optuna.storages.JournalStorage(journal),
            load_if_exists=True,
        )
        for values in grid:
            study.enqueue_trial(
                dict(zip(spaces, values, strict=True)), skip_if_exists=True
            )
        distributions = {
            name: _to_distribution(optuna.distributions, space)
            for name, space in spaces.items()
        }
        running = study.get_trials(states=[optuna.trial.TrialState.RUNNING])
        while time.monotonic() < stop:
            if running:
                trial = running.pop(0)
            else:
                states = [trial.state.is_finished() for trial in study.get_trials()]
                if sum(states) >= trials:
                    break
                # one for each trial: a sweep that goes on draws as one never stopped
                seed = config.seed + sum(states)
                study.sampler = optuna.samplers.TPESampler(seed=seed)
                trial = study.ask(distributions)
            do(trial)
        found = [
            Trial(output / f"trial-{trial.number:03d}", trial.params, trial.value)
            for trial in study.get_trials()
            if trial.state.is_finished()
        ]
        found.sort(key=lambda trial: math.inf if trial.loss is None else trial.loss)
        _write_table(output / TRIALS_FILE, spaces, found, loss_name)
        if any(trial.loss is not None for trial in found):
            with atomic_path(output / PICTURE_FILE) as temporary:
                _draw(spaces, found, by_bytes).savefig(temporary, dpi=120)
    return found


@dataclass(frozen=True)
class _Range:
    low: int | float
    high: int | float
    is_log: bool


def _read_space(name, text):
    """A list of values, or a range."""
    low, colon, rest = str(text).partition(":")
    if not colon:
        return [read_number(yaml.safe_load(value)) for value in low.split(",")]
    high, _, scale = rest.partition(":")
    low, high = read_number(low), read_number(high)
    numbers = all(isinstance(limit, int | float) for limit in (low, high))
    if not numbers or low >= high or scale not in ("", "log") or (scale and low <= 0):
        raise ValueError(
            f"`over` of {name} must be values such as 2,4,6, or a range such as "
            f"1e-4:1e-2:log. Received: {name}={text}."
        )
    return _Range(low, high, scale == "log")


def _values_of(space):
    return space if isinstance(space, list) else [space.low, space.high]


def _to_distribution(distributions, space):
    if isinstance(space, list):
        return distributions.CategoricalDistribution(space)
    limits = (space.low, space.high)
    if all(isinstance(limit, int) for limit in limits):
        return distributions.IntDistribution(*limits, log=space.is_log)
    return distributions.FloatDistribution(*limits, log=space.is_log)


def _with_values(config, values):
    """A run with other values of some fields, of its model too."""
    fields = {name: value for name, value in values.items() if "." not in name}
    inner = {
        name.removeprefix("model."): value
        for name, value in values.items()
        if name.startswith("model.")
    }
    unknown = [n for n in values if "." in n and not n.startswith("model.")]
    if unknown:
        fields |= dict.fromkeys(unknown)  # which the run refuses, with what was meant
    return config.replaced(
        **fields, **({"model": config.model | inner} if inner else {})
    )


def _claim(path, config, over):
    """Note what a sweep is of, or see that it is the same."""
    kept = {"over": dict(over), "run": config.model_dump(exclude={"output"})}
    if path.is_file() and read_json(path) != kept:
        raise ValueError(
            f"{path.parent} has a sweep of other runs or fields; {path.name} says "
            "which. Give what it was begun with, or another folder."
        )
    write_json(path, kept)


def _show(values):
    shown = (f"{v:.4g}" if isinstance(v, float) else v for v in values.values())
    return " ".join(f"{n}={v}" for n, v in zip(values, shown, strict=True))


def _write_table(path, spaces, trials, loss_name):
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *spaces, loss_name])
        for trial in trials:
            values = (trial.values[name] for name in spaces)
            writer.writerow([trial.folder.name, *values, trial.loss])


def _draw(spaces, trials, by_bytes):
    """The loss over each field, side by side, as a Matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    done = [trial for trial in trials if trial.loss is not None]
    figure = Figure(figsize=(max(4, 3.5 * len(spaces)), 4), layout="constrained")
    FigureCanvasAgg(figure)
    [row] = figure.subplots(1, len(spaces), sharey=True, squeeze=False)
    losses = [trial.loss for trial in done]
    for axes, (name, space) in zip(row, spaces.items(), strict=True):
        values = [trial.values[name] for trial in done]
        if isinstance(space, list):  # side by side, as they were given
            names = list(map(str, space))
            values = [names.index(str(value)) for value in values]
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
        elif space.is_log:
            axes.set_xscale("log")
            axes.set_xlim(space.low / 1.2, space.high * 1.2)
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.scatter(values, losses, color="#5b9bd5", zorder=2)
        axes.scatter(values[:1], losses[:1], color="#c2410c", zorder=3)
        axes.set_xlabel(name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    row[0].set_ylabel("bits per byte" if by_bytes else "loss (nats per token)")
    best = f"best: {_show(done[0].values)}: {losses[0]:.4f}"
    figure.suptitle(best, color="#c2410c", fontsize=10)
    return figure
