"""What training and fine-tuning share: `model.fit`, checkpoints, logs."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import keras

from keras_gpt import training
from keras_gpt.runs import report
from keras_gpt.runs.config import Plan
from keras_gpt.runs.folder import write_config
from keras_gpt.runs.interrupts import noticed_interrupts


def compile_and_load(plan: Plan, model, *, resume: bool) -> int:
    """Compile a model as its run says, with the state from which it goes on.

    Returns:
        The step that it goes on from, or 0.

    Raises:
        ValueError: The state is damaged or of another run.
    """
    training.compile_model(model, total_steps=plan.steps, **plan.arguments())
    path = Path(plan.output) / report.STATE_FILE
    step = training.load_state(model, path) if resume and path.is_file() else 0
    if step > plan.steps:
        raise ValueError(
            f"`steps` must be at least {step}, which are done. Received: "
            f"steps={plan.steps}."
        )
    return step


def fit(
    plan: Plan,
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

    Only here, where all was found to fit, is the configuration written of a run that
    goes on. Ctrl-C and SIGTERM save the state after the next step, or, during a
    validation, at its end, and then do what they do.

    Args:
        plan: Of the run, with all its numbers.
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
        ValueError: The loss became infinite, or the log is damaged.
    """
    start = time.perf_counter()
    output = Path(plan.output)
    num_validations = step // plan.evaluate_every
    losses = ()
    if num_validations:
        losses = report.read_log(output / report.LOG_FILE, num_validations)["val_loss"]
    best = training.SaveBest(save, patience=plan.early_stopping, losses=losses)
    write_config(plan)
    if step < plan.steps and not best.is_over:
        report.cut_log(output / report.LOG_FILE, num_validations)
        throughput = training.Throughput(
            tokens_per_batch,
            flops_per_token,
            training.measure_peak_flops(model.dtype_policy.compute_dtype),
        )
        callbacks = [throughput]
        if tokens_per_byte is not None:
            callbacks.append(training.BitsPerByte(tokens_per_byte))
        reporting = [
            training.EventLog(output / report.EVENTS_FOLDER, sample=sample),
            report.LogFile(output / report.LOG_FILE, append=True),
            training.ProgressBar(
                plan.steps * plan.accumulation_steps,
                first_batch=step * plan.accumulation_steps,
                throughput=throughput,
                console=console,
            ),
        ]
        callbacks.append(best)
        _fit(plan, model, batches, validation, callbacks, reporting, step, console)
    elif (output / report.RESULT_FILE).is_file():
        return
    report.plot_losses(output / report.LOG_FILE, output / report.PLOT_FILE)
    report.write_result(output, time.perf_counter() - start)


def _fit(plan, model, batches, validation, callbacks, reporting, step, console):
    """Call `model.fit`; leave nothing open and no weights lost when it is stopped."""
    loss_stop = training.StopOnNonFiniteLoss()
    callbacks = [loss_stop, *callbacks, *reporting]
    if plan.ema_momentum is not None:
        # behind SaveBest, which saves before the weights are swapped back
        callbacks.append(keras.callbacks.SwapEMAWeights())
    with noticed_interrupts(signal.SIGTERM) as notice:
        state = training.SaveState(
            Path(plan.output) / report.STATE_FILE,
            plan.evaluate_every,
            first_step=step,
            accumulation_steps=plan.accumulation_steps,
            notice=notice,
        )
        try:
            model.fit(
                batches,
                epochs=plan.steps // plan.evaluate_every,
                initial_epoch=step // plan.evaluate_every,
                steps_per_epoch=plan.evaluate_every * plan.accumulation_steps,
                validation_data=validation,
                validation_steps=len(validation),
                # last, so that a run that goes on from a state lacks nothing before it
                callbacks=[*callbacks, state],
                shuffle=False,
                verbose=0,
            )
        except BaseException:
            # Keras leaves files open then, and the bar running and the cursor hidden
            for callback in reporting:
                callback.on_train_end()
            if notice.is_set():
                console.print(
                    f"Stopped at step {state.step:,} of {plan.steps:,}: the run in "
                    f"{plan.output} goes on with --resume.",
                    highlight=False,
                    soft_wrap=True,
                )
            raise
    if loss_stop.stopped:
        raise ValueError(
            "The loss became infinite or NaN. The last good checkpoint is kept in "
            f"{plan.output}. Lower learning_rate, or use dtype=float32."
        )
