"""A run's folder: for one run at a time, begun once, gone on with as it was."""

import contextlib
import platform
import random
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import keras
import yaml

from keras_gpt import training
from keras_gpt.backend import hosts
from keras_gpt.files import atomic_path, locked, write_json
from keras_gpt.language_model import is_saved
from keras_gpt.runs.config import Plan
from keras_gpt.runs.report import (
    CONFIG_FILE,
    LOG_FILE,
    PREVIOUS_STATE_FILE,
    STATE_FILE,
)
from keras_gpt.training import load_state

_STATES = (STATE_FILE, PREVIOUS_STATE_FILE)

# what doesn't change the steps that are done
MAY_CHANGE = (
    "output",
    "steps",
    "save_every",
    "early_stopping",
    "sample_prompt",
    "sample_tokens",
    "jit_compile",
    "remat",
    "devices",
)


@contextlib.contextmanager
def claimed(config: Plan, resume: bool, console) -> Iterator[Plan]:
    """Keep a run's folder for this run alone; seed what it draws; take its devices.

    Of several processes the first one has the folder, and only its console speaks.

    Yields:
        The configuration; when a run goes on, what was given on top of what it had.

    Raises:
        FileExistsError: The folder has a run or a model, and `resume` is false.
        FileNotFoundError: There is none to resume, or its state is missing.
        ValueError: The run that goes on would be another.
    """
    output = Path(config.output)
    path = output / CONFIG_FILE
    is_first = training.join_hosts()
    console.quiet = console.quiet or not is_first
    if resume and not path.is_file():
        raise FileNotFoundError(f"There is no run in {output} to resume.")
    with locked(output) if is_first else contextlib.nullcontext():
        has_state = any((output / name).is_file() for name in _STATES)
        if resume:
            config = _go_on(config, path)
            if not has_state and _has_validations(output):
                raise FileNotFoundError(
                    f"{output / STATE_FILE} is missing, from which the run would go on."
                    " Put it back, or start the run anew in another folder."
                )
        elif has_state or is_saved(output):
            raise FileExistsError(
                f"{output} already holds a run or a model. Go on with the run "
                "(--resume), or choose another --output."
            )
        # Keras draws the seeds of initializers and dropout from here; its own
        # `set_random_seed` would load TensorFlow whatever the backend
        random.seed(config.seed)
        hosts.wait_for_all()  # all have looked before the first one writes
        with _spread(config):
            yield config.planned()
        hosts.wait_for_all()  # all have read what they return


def _spread(config):
    """The context in which a run's model is made, over the devices of the run."""
    if config.devices is None and hosts.place()[1] == 1:
        return contextlib.nullcontext()
    spread = training.make_distribution(config.devices or "all")
    parts = spread.num_model_replicas
    if config.batch_size % parts:
        raise ValueError(
            f"`batch_size` must be a multiple of {parts}, the parts that each batch is "
            f"cut into. Received: batch_size={config.batch_size}, "
            f"devices={config.devices}."
        )
    return spread.scope()


def _go_on(config, path):
    """What was given of a configuration, on top of that in the run's folder."""
    before = type(config).from_yaml(path).planned()
    given = {name: getattr(config, name) for name in config.model_fields_set}
    after = before.replaced(**given).planned()
    changed = [
        f"{name} from {getattr(before, name)!r} to {getattr(after, name)!r}"
        for name in type(config).model_fields
        if getattr(before, name) != getattr(after, name) and name not in MAY_CHANGE
    ]
    if changed:
        raise ValueError(
            f"The run in {path.parent} goes on as it was. Received: "
            f"{', '.join(changed)}. Leave that out, or start another run in another "
            f"folder. Only these may change: {', '.join(MAY_CHANGE)}."
        )
    return after


def _has_validations(output):
    """Whether there were some behind the first, at which a run can be killed."""
    log = output / LOG_FILE
    return log.is_file() and len(log.read_bytes().splitlines()) > 2


def load_last_state(model, output: Path, console) -> int:
    """Put back the last state of a run, or the one before if that is damaged.

    Args:
        model: As `training.load_state` takes it.
        output: The run's folder. In a damaged state's place the one before is put, so
            that the next state doesn't push out the only good one.
        console: For a warning.

    Returns:
        The number of steps done; 0 if there is no state.

    Raises:
        ValueError: All there are damaged, or of another model.
    """
    last, previous = (output / name for name in _STATES)
    if not last.is_file() and not previous.is_file():
        return 0
    try:
        return load_state(model, last)
    except ValueError as error:
        if not previous.is_file():
            raise
        try:
            step = load_state(model, previous)
        except ValueError:
            raise ValueError(
                f"{error} The one before it, {previous}, fails too."
            ) from error
        console.print(
            f"Warning: {last} is missing or damaged. The run goes on from the state "
            f"before it, {previous}.",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
        hosts.wait_for_all()  # all have read it
        if hosts.place()[0] == 0:
            previous.replace(last)
        return step


def write_config(config: Plan) -> None:
    """Note in a run's folder what it is and what it runs on, in the first process."""
    if hosts.place()[0]:
        return
    output = Path(config.output)
    with atomic_path(output / CONFIG_FILE) as temporary:
        text = yaml.safe_dump(config.model_dump(), sort_keys=False)
        temporary.write_text(text, encoding="utf-8")
    environment = {
        "backend": keras.backend.backend(),
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    for name in ("keras-gpt", "keras", "tensorflow", "jax", "torch", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            environment[name] = metadata.version(name)
    write_json(output / "environment.json", environment)
