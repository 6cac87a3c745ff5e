"""What training and fine-tuning share: `model.fit`, checkpoints, logs."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import keras

from keras_gpt import training
from keras_gpt.backend import hosts
from keras_gpt.runs import report
from keras_gpt.runs.config import Plan
from keras_gpt.runs.folder import load_last_state, write_config
from keras_gpt.runs.interrupts import noticed_interrupts
from keras_gpt.training import callbacks

# no hyperparameters
_NOT_SHOWN = {
    *("output", "save_every", "text_field", "encoding"),
    *("sample_prompt", "sample_tokens"),
}
_POINTS = 500  # of the curve of training losses, in the middle of 200 to 1,000


def fit(
    plan: Plan,
    model,
    load: Callable,
    *,
    resume: bool,
    console,
    intro: str,
    sequence_length: int,
    save: Callable[[], None],
    sample: Callable[[], str],
    picture: Callable[[], bytes],
    start_loss: float | None = None,
    tokens_per_byte: float | None = None,
) -> None:
    """Compile and `fit` a model as its run says; draw the losses, note the result.

    Only here, where all was found to fit, is the configuration written of a run that
    goes on. Ctrl-C and SIGTERM save the state after the next step, or, during a
    validation, at its end, and then do what they do.

    Args:
        plan: Of the run, with all its numbers.
        model: A `GPT` or a `PreferenceModel`.
        load: Returns the batches of `"train"` or `"val"`, with a `start_step` and an
            `order` as of `data.load_batches`.
        resume: Whether to go on from the state in the run's folder, if there is one.
        console: For messages and the progress bar.
        intro: What to say at the start.
        sequence_length: Tokens in a row.
        save: Called whenever the validation loss is the lowest so far.
        sample: Returns a text to note after each validation, if the run wants any.
        picture: Returns a PNG to note then.
        start_loss: Of a model that knows nothing, or `None`.
        tokens_per_byte: Of the validation data, for bits per byte, or `None`.

    Raises:
        ValueError: Both states or the log are damaged or of another run, or the loss
            became infinite.
    """
    output = Path(plan.output)
    log_path = output / report.LOG_FILE
    training.compile_model(model, total_steps=plan.steps, **plan.arguments())
    step = load_last_state(model, output, console) if resume else 0
    if step > plan.steps:
        raise ValueError(
            f"`steps` must be at least {step}, which are done. Received: "
            f"steps={plan.steps}."
        )
    console.print(
        f"{intro}: {plan.steps:,} steps of {plan.batch_size} x {sequence_length} tokens"
        + (f", going on at step {step:,}" if step else ""),
        highlight=False,
        soft_wrap=True,
    )
    training.check_savable(model)
    share = training.share_of_batches()
    batches = load("train", start_step=step * plan.accumulation_steps, **share)
    # a smaller last batch is one that devices can't share
    is_spread = keras.distribution.distribution() is not None
    validation = load("val", order="sequential", pad_remainder=is_spread, **share)
    start = time.perf_counter()
    is_first = hosts.place()[0] == 0
    gpt = getattr(model, "gpt", model)  # the one inside a PreferenceModel

    def wholly(function):
        """The function as the first process does it, with whole weights."""

        def call():
            with training.gathered(gpt):
                found = function() if is_first else None
            hosts.wait_for_all()  # what it wrote is there
            return found

        return call

    epoch = step // plan.evaluate_every
    losses = report.read_log(log_path, epoch)["val_loss"] if epoch else ()
    best = callbacks.SaveBest(wholly(save), patience=plan.early_stopping, losses=losses)
    write_config(plan)
    if step < plan.steps and not best.is_over:
        throughput = callbacks.Throughput(
            plan.batch_size * sequence_length * (1 if gpt is model else 2),
            gpt.count_flops_per_token(sequence_length),
            callbacks.measure_peak_flops(model.dtype_policy.compute_dtype),
        )
        others = [throughput, best]
        if tokens_per_byte is not None:
            others.append(callbacks.BitsPerByte(tokens_per_byte))
        samples = [wholly(sample), wholly(picture)] if plan.sample_tokens else []
        if is_first:
            reporting = _report(
                plan, gpt, step, samples, throughput, len(validation), console
            )
        else:
            reporting = [_Assistant(samples)]
        _fit(plan, model, batches, validation, others, reporting, step, console)
    elif (output / report.RESULT_FILE).is_file():
        return
    if is_first:
        report.plot_losses(
            output,
            about=f"{gpt.count_params():,} parameters · {plan.steps:,} steps of "
            f"{plan.batch_size} x {sequence_length} tokens",
            start=start_loss,
            tokens_per_byte=tokens_per_byte,
        )
        report.write_result(output, time.perf_counter() - start)


def _report(plan, gpt, step, samples, throughput, validation_batches, console):
    """The callbacks that write logs and show what is done."""
    output = Path(plan.output)
    steps_path = output / report.STEPS_FILE
    report.cut_log(output / report.LOG_FILE, step // plan.evaluate_every)
    told = report.cut_step_losses(steps_path, step)
    events = callbacks.EventLog(
        output / report.EVENTS_FOLDER / output.absolute().name,
        **dict(zip(("sample", "picture"), samples, strict=False)),
        hyperparameters={
            "backend": keras.backend.backend(),
            "parameters": gpt.count_params(),
            **_flat(plan.model_dump(exclude=_NOT_SHOWN)),
        },
    )

    def tell(step, loss):
        report.note_loss(steps_path, step, loss)
        events.write_loss(step, loss)

    return [
        callbacks.StepLosses(
            tell,
            max(1, plan.steps // _POINTS),
            plan.evaluate_every,
            first_step=step,
            accumulation_steps=plan.accumulation_steps,
            told=told,
        ),
        events,
        report.LogFile(output / report.LOG_FILE, append=True),
        callbacks.ProgressBar(
            plan.steps * plan.accumulation_steps,
            first_batch=step * plan.accumulation_steps,
            validation_batches=validation_batches,
            throughput=throughput,
            console=console,
        ),
    ]


class _Assistant(keras.callbacks.Callback):
    """Does its part of what the first process writes at the end of an epoch."""

    def __init__(self, samples):
        super().__init__()
        self.samples = samples

    def on_epoch_end(self, epoch, logs=None):
        """Help with each."""
        for sample in self.samples:
            sample()


def _fit(plan, model, batches, validation, others, reporting, step, console):
    """Call `model.fit`; leave nothing open and no weights lost when it is stopped."""
    loss_stop = callbacks.StopOnNonFiniteLoss()
    watching = [loss_stop, *others, *reporting]
    if plan.ema_momentum is not None:
        # behind SaveBest, which saves before the weights are swapped back
        watching.append(keras.callbacks.SwapEMAWeights())
    with noticed_interrupts(signal.SIGTERM) as notice:
        state = callbacks.SaveState(
            Path(plan.output) / report.STATE_FILE,
            plan.evaluate_every,
            first_step=step,
            accumulation_steps=plan.accumulation_steps,
            every=plan.save_every,
            previous=Path(plan.output) / report.PREVIOUS_STATE_FILE,
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
                callbacks=[*watching, state],
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


def _flat(fields, prefix=""):
    """What is set among nested fields, by names such as `model.num_layers`."""
    found = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = (
                value if isinstance(value, int | float) else str(value)
            )
    return found
