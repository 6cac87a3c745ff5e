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
from keras_gpt.files import atomic_path, locked, write_json
from keras_gpt.language_model import is_saved
from keras_gpt.runs.config import Plan
from keras_gpt.runs.report import CONFIG_FILE, STATE_FILE

# what doesn't change the steps that are done
MAY_CHANGE = (
    "output",
    "steps",
    "early_stopping",
    "sample_prompt",
    "sample_tokens",
    "jit_compile",
    "remat",
    "devices",
)


@contextlib.contextmanager
def claimed(config: Plan, resume: bool) -> Iterator[Plan]:
    """Keep a run's folder for this run alone; seed what it draws; take its devices.

    Yields:
        The configuration; when a run goes on, what was given on top of what it had.

    Raises:
        FileExistsError: The folder has a run or a model, and `resume` is false.
        FileNotFoundError: There is none to resume, or its state is missing.
        ValueError: The run that goes on would be another.
    """
    output = Path(config.output)
    path = output / CONFIG_FILE
    if resume and not path.is_file():
        raise FileNotFoundError(f"There is no run in {output} to resume.")
    with locked(output):
        has_state = (output / STATE_FILE).is_file()
        if resume:
            config = _go_on(config, path)
            if not has_state and is_saved(output):
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
        with _spread(config):
            yield config.planned()


def _spread(config):
    """The context in which a run's model is made, over the devices of the run."""
    if config.devices is None:
        return contextlib.nullcontext()
    spread = training.make_distribution(config.devices)
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


def write_config(config: Plan) -> None:
    """Note in a run's folder what it is and what it runs on."""
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
