"""Doing a training run: tokenizer, data, `model.fit`, checkpoints, logs."""

import contextlib
import dataclasses
import math
import platform
import random
import time
from importlib import metadata
from pathlib import Path

import keras

from keras_gpt import data, tokenizers, training
from keras_gpt.config import GPTConfig
from keras_gpt.files import atomic_path, write_json
from keras_gpt.language_model import TOKENIZER_FOLDER, Evaluation, LanguageModel
from keras_gpt.model import GPT
from keras_gpt.runs.config import RunConfig
from keras_gpt.runs.interrupts import EndOnInterrupt, noticed_interrupts
from keras_gpt.runs.report import (
    CONFIG_FILE,
    DATA_FOLDER,
    EVENTS_FOLDER,
    LOG_FILE,
    PLOT_FILE,
    STATE_FILE,
    cut_log,
    plot_losses,
    write_result,
)

TOKENIZERS = {
    "characters": tokenizers.CharacterTokenizer,
    "sentencepiece": tokenizers.SentencePieceTokenizer,
    "byte_pair": tokenizers.BytePairTokenizer,
}


def train(config: RunConfig, *, resume: bool = False, console=None) -> LanguageModel:
    """Do a training run: tokenizer, data, `model.fit`, checkpoints, logs.

    The folder `config.output` then holds the best model by validation loss, as
    `LanguageModel.load` reads it, the state at the last validation, from which a
    stopped run goes on exactly, `log.csv`, a loss curve, TensorBoard events, and
    what the run needs to be repeated.

    Args:
        config: The run.
        resume: Go on with a run that was stopped.
        console: A `rich.console.Console` for messages. Defaults to standard error.

    Returns:
        The best model.

    Raises:
        FileExistsError: The folder has a run, and `resume` is false.
        ValueError: Something doesn't fit, or the loss became infinite.
    """
    from rich.console import Console

    console = console or Console(stderr=True)
    output = Path(config.output)
    _claim(output, config, resume)
    # Keras draws the seeds of initializers and dropout from here; its own
    # `set_random_seed` would load TensorFlow whatever the backend
    random.seed(config.seed)
    tokenizer, directory = _prepare(config, output, resume, console)
    lm = LanguageModel(_build(config, tokenizer), tokenizer)
    training.compile_model(
        lm.model,
        config.learning_rate,
        total_steps=config.steps,
        **{name: getattr(config, name) for name in _RECIPE},
    )
    step = 0
    if resume and (output / STATE_FILE).is_file():
        step = training.load_state(lm.model, output / STATE_FILE)
    length = config.sequence_length or lm.model.config.context_length
    console.print(
        f"Training {lm.model.count_params():,} parameters on "
        f"{keras.backend.backend()}: {config.steps:,} steps of "
        f"{config.batch_size} x {length} tokens"
        + (f", going on at step {step:,}" if step else ""),
        highlight=False,
    )
    start = time.perf_counter()
    loss_stop = _fit(config, lm, directory, length, step, console)
    if loss_stop.stopped:
        raise ValueError(
            "The loss became infinite or NaN. The last good checkpoint is kept in "
            f"{output}. Lower learning_rate, or use dtype=float32."
        )
    plot_losses(output / LOG_FILE, output / PLOT_FILE)
    if step < config.steps:
        write_result(output, time.perf_counter() - start)
    return LanguageModel.load(output, dtype=config.dtype)


_RECIPE = (
    "final_learning_rate",
    "warmup_steps",
    "schedule",
    "optimizer",
    "weight_decay",
    "beta_1",
    "beta_2",
    "clip_norm",
    "accumulation_steps",
    "ema_momentum",
    "jit_compile",
)


def _claim(output, config, resume):
    """Write the run's configuration, unless the folder has another run."""
    import yaml

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


def _prepare(config, output, resume, console):
    """Get the tokenizer and the token files."""
    if config.data is not None:
        if config.tokenizer in TOKENIZERS:
            raise ValueError(
                "`data` is already tokenized: name the folder of its tokenizer too, "
                f"tokenizer=FOLDER. Received: tokenizer={config.tokenizer!r}."
            )
        tokenizer = tokenizers.load(config.tokenizer)
        found = data.read_metadata(config.data)["tokenizer"]
        if found != tokenizer.fingerprint:
            raise ValueError(
                f"{config.data} was prepared with another tokenizer than "
                f"{config.tokenizer}. Name the one that it was prepared with."
            )
        return tokenizer, Path(config.data)
    if resume and (output / TOKENIZER_FOLDER).is_dir():
        tokenizer = tokenizers.load(output / TOKENIZER_FOLDER)
    elif config.tokenizer in TOKENIZERS:
        tokenizer = train_tokenizer(
            config.tokenizer,
            config.corpus,
            config.vocab_size,
            text_field=config.text_field,
            encoding=config.encoding,
        )
    else:
        tokenizer = tokenizers.load(config.tokenizer)
    tokenizer.save(output / TOKENIZER_FOLDER)
    directory = output / DATA_FOLDER
    found = data.prepare(
        config.corpus,
        directory,
        tokenizer,
        validation_fraction=config.validation_fraction,
        text_field=config.text_field,
        encoding=config.encoding,
        overwrite=not resume,
    )
    counts = found["splits"]
    console.print(
        f"Prepared {counts['train']['num_tokens']:,} tokens to train on and "
        f"{counts['val']['num_tokens']:,} to validate, of "
        f"{tokenizer.vocab_size:,} kinds",
        highlight=False,
    )
    return tokenizer, directory


def train_tokenizer(
    kind: str,
    corpus: str,
    vocab_size: int | None = None,
    *,
    text_field: str = "text",
    encoding: str = "utf-8",
):
    """Train a tokenizer on a corpus.

    Args:
        kind: `"byte_pair"`, `"sentencepiece"` or `"characters"`.
        corpus: As `RunConfig.corpus`.
        vocab_size: Defaults to 4096, and for characters to as many as there are.
        text_field: As in `RunConfig`.
        encoding: As in `RunConfig`.

    Returns:
        A tokenizer.
    """
    if kind not in TOKENIZERS:
        raise ValueError(
            f"`tokenizer` must be one of {', '.join(TOKENIZERS)}, or a folder. "
            f"Received: {kind!r}."
        )
    documents = data.Corpus(corpus, text_field=text_field, encoding=encoding)
    texts = (piece.text for piece in documents.pieces())
    if vocab_size is None and kind != "characters":
        vocab_size = 4096
    return TOKENIZERS[kind].train(texts, vocab_size)


def _build(config, tokenizer):
    """Make the model, with the tokenizer's vocabulary unless the run says otherwise."""
    fields = {"vocab_size": tokenizer.vocab_size, **config.model}
    preset = fields.pop("preset", None)
    if config.packing == "documents":
        fields.setdefault("document_separator_id", tokenizer.end_of_text_id)
    if preset is None:
        gpt_config = GPTConfig.from_dict(fields)
    else:
        gpt_config = GPTConfig.from_preset(preset, **fields)
    return GPT(gpt_config, dtype=config.dtype)


def _fit(config, lm, directory, length, step, console):
    """Call `model.fit` with all callbacks; return the one that watches the loss."""
    output = Path(config.output)
    first_batch = step * config.accumulation_steps
    batches = data.load_batches(
        directory,
        "train",
        config.batch_size,
        length,
        config.seed,
        start_step=first_batch,
        packing=config.packing,
        vocab_size=lm.model.config.vocab_size,
    )
    validation = data.load_batches(
        directory,
        "val",
        config.batch_size,
        length,
        order="sequential",
        packing=config.packing,
        num_steps=config.evaluation_batches,
    )
    counts = data.read_metadata(directory)["splits"]["val"]
    throughput = training.Throughput(
        config.batch_size * length,
        lm.model.count_flops_per_token(length),
        training.measure_peak_flops(lm.model.dtype_policy.compute_dtype),
    )
    loss_stop = training.StopOnNonFiniteLoss()
    epoch = step // config.evaluate_every
    best = cut_log(output / LOG_FILE, step) if step else math.inf
    reporting = [
        training.EventLog(
            output / EVENTS_FOLDER, sample=_sampler(config, lm, directory)
        ),
        keras.callbacks.CSVLogger(output / LOG_FILE, append=step > 0),
        training.ProgressBar(
            config.steps * config.accumulation_steps,
            first_batch=first_batch,
            throughput=throughput,
            console=console,
        ),
    ]
    callbacks = [
        loss_stop,
        throughput,
        training.BitsPerByte(counts["num_tokens"] / counts["num_bytes"]),
        training.SaveBest(lambda: lm.save(output), best=best),
        *reporting,
    ]
    if config.ema_momentum is not None:
        # behind SaveBest, which saves before the weights are swapped back
        callbacks.append(keras.callbacks.SwapEMAWeights())
    if config.early_stopping is not None:
        callbacks.append(keras.callbacks.EarlyStopping(patience=config.early_stopping))
    # last, so that a run that goes on from a state lacks nothing from before it
    callbacks.append(training.SaveState(output / STATE_FILE, config.evaluate_every))
    try:
        with noticed_interrupts() as noticed:
            lm.model.fit(
                batches,
                epochs=config.steps // config.evaluate_every,
                initial_epoch=epoch,
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
    return loss_stop


def _sampler(config, lm, directory):
    """A function that continues the prompt of the samples, or None."""
    if config.sample_tokens == 0:
        return None
    prompt = config.sample_prompt
    if prompt is None:
        prompt = first_words(lm, directory)

    def sample():
        return prompt + lm.generate(prompt, config.sample_tokens, seed=config.seed)

    return sample


def first_words(lm: LanguageModel, directory: str | Path) -> str:
    """The beginning of the validation text in a prepared folder, as a prompt."""
    ids = data.TokenDataset(directory, "val")[0:8]
    return lm.tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def evaluate_validation(output: str | Path, lm: LanguageModel) -> Evaluation:
    """Evaluate a model on a run's validation tokens, in windows of its context.

    Args:
        output: The run's folder.
        lm: The model.

    Raises:
        FileNotFoundError: The folder has no prepared data.
    """
    config = RunConfig.from_yaml(Path(output) / CONFIG_FILE, [])
    directory = Path(config.data) if config.data else Path(output) / DATA_FOLDER
    tokens = data.TokenDataset(directory, "val")
    length = lm.model.config.context_length
    # the whole windows, as in training
    tokens = tokens[: (len(tokens) - 1) // length * length + 1]
    return lm.evaluate_ids(
        tokens[i : i + 2**16].tolist() for i in range(0, len(tokens), 2**16)
    )
