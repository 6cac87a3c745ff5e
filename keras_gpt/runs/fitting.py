"""What training and fine-tuning share: a folder, `model.fit`, checkpoints, logs."""

import contextlib
import dataclasses
import math
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import keras

from keras_gpt import training
from keras_gpt.files import atomic_path, write_json
from keras_gpt.runs.interrupts import EndOnInterrupt, noticed_interrupts
from keras_gpt.runs.report import (
    CONFIG_FILE,
    EVENTS_FOLDER,
    LOG_FILE,
    PLOT_FILE,
    STATE_FILE,
    cut_log,
    plot_losses,
    write_result,
)


def claim(config, resume: bool) -> None:
    """Write a run's configuration into its folder, unless that has another run.

    Raises:
        FileExistsError: It has, and `resume` is false.
        FileNotFoundError: There is none to resume.
    """
    import yaml

    output = Path(config.output)
    path = output / CONFIG_FILE
    if (output / STATE_FILE).is_file() and not resume:
        raise FileExistsError(
            f"{output} already holds a run. Go on with it (--resume), or choose "
            "another --output."
        )
    if resume and not path.is_file():
        raise FileNotFoundError(f"There is no run in {output} to resume.")
    output.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
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


def compile_and_load(config, model, *, resume: bool) -> int:
    """Compile a model as its run says, with the state from which it goes on.

    Returns:
        The step that it goes on from, or 0.
    """
    training.compile_model(
        model,
        config.learning_rate,
        total_steps=config.steps,
        **config.arguments(),
    )
    path = Path(config.output) / STATE_FILE
    return training.load_state(model, path) if resume and path.is_file() else 0


def fit(
    config,
    model,
    batches,
    validation,
    *,
    save: Callable[[], None],
    tokens_per_batch: int,
    flops_per_token: int,
    step: int,
    console,
    sample: Callable[[], str] | None = None,
    tokens_per_byte: float | None = None,
) -> None:
    """Call `model.fit` with all callbacks; draw the losses and note the result.

    Args:
        config: A `RunConfig` or `FinetuneConfig`.
        model: Compiled by `compile_and_load`.
        batches: To train on, from the step on.
        validation: To validate with.
        save: Called whenever the validation loss is the lowest so far.
        tokens_per_batch: Batch size times sequence length.
        flops_per_token: From `GPT.count_flops_per_token`.
        step: What `compile_and_load` returned.
        console: For the progress bar.
        sample: Returns a text to note after each validation, or `None`.
        tokens_per_byte: Of the validation data, for bits per byte, or `None`.

    Raises:
        ValueError: The loss became infinite.
    """
    start = time.perf_counter()
    output = Path(config.output)
    first_batch = step * config.accumulation_steps
    throughput = training.Throughput(
        tokens_per_batch,
        flops_per_token,
        training.measure_peak_flops(model.dtype_policy.compute_dtype),
    )
    loss_stop = training.StopOnNonFiniteLoss()
    best = cut_log(output / LOG_FILE, step) if step else math.inf
    reporting = [
        training.EventLog(output / EVENTS_FOLDER, sample=sample),
        keras.callbacks.CSVLogger(output / LOG_FILE, append=step > 0),
        training.ProgressBar(
            config.steps * config.accumulation_steps,
            first_batch=first_batch,
            throughput=throughput,
            console=console,
        ),
    ]
    callbacks = [loss_stop, throughput]
    if tokens_per_byte is not None:
        callbacks.append(training.BitsPerByte(tokens_per_byte))
    callbacks += [training.SaveBest(save, best=best), *reporting]
    if config.ema_momentum is not None:
        # behind SaveBest, which saves before the weights are swapped back
        callbacks.append(keras.callbacks.SwapEMAWeights())
    if config.early_stopping is not None:
        callbacks.append(keras.callbacks.EarlyStopping(patience=config.early_stopping))
    # last, so that a run that goes on from a state lacks nothing from before it
    callbacks.append(training.SaveState(output / STATE_FILE, config.evaluate_every))
    try:
        with noticed_interrupts() as noticed:
            model.fit(
                batches,
                epochs=config.steps // config.evaluate_every,
                initial_epoch=step // config.evaluate_every,
                steps_per_epoch=config.evaluate_every * config.accumulation_steps,
                validation_data=validation,
                validation_steps=len(validation),
                callbacks=[*callbacks, EndOnInterrupt(noticed)],
                shuffle=False,
                verbose=0,
            )
    except BaseException:
        # Keras leaves files open then, and the bar running and the cursor hidden
        for callback in reporting:
            callback.on_train_end()
        raise
    if loss_stop.stopped:
        raise ValueError(
            "The loss became infinite or NaN. The last good checkpoint is kept in "
            f"{output}. Lower learning_rate, or use dtype=float32."
        )
    plot_losses(output / LOG_FILE, output / PLOT_FILE)
    if step < config.steps:
        write_result(output, time.perf_counter() - start)
