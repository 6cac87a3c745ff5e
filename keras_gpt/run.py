"""A training run: from a corpus and a configuration to a folder with everything."""

import dataclasses
import difflib
import math
import platform
import random
import time
import types
import typing
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_gpt import data, tokenizers, training
from keras_gpt.config import GPTConfig
from keras_gpt.files import atomic_path, read_json, write_json
from keras_gpt.language_model import TOKENIZER_FOLDER, Evaluation, LanguageModel
from keras_gpt.model import GPT

CONFIG_FILE = "run.yaml"
STATE_FILE = "last.npz"
LOG_FILE = "log.csv"
PLOT_FILE = "loss.png"
RESULT_FILE = "result.json"
EVENTS_FOLDER = "events"
DATA_FOLDER = "data"

TOKENIZERS = {
    "characters": tokenizers.CharacterTokenizer,
    "sentencepiece": tokenizers.SentencePieceTokenizer,
    "byte_pair": tokenizers.BytePairTokenizer,
}


@dataclass(kw_only=True)
class RunConfig:
    """All that defines a training run; `run.yaml` in its folder holds it.

    Args:
        corpus: `"embedded"`, or the path of a text file, a folder, JSON Lines or
            Parquet (`keras_gpt.data.prepare`).
        data: A folder that `keras-gpt prepare` wrote, instead of `corpus`.
        output: The run's folder.
        tokenizer: `"byte_pair"`, `"sentencepiece"` or `"characters"`, to be trained on
            the corpus, or the folder of one.
        vocab_size: Of the tokenizer to train; characters need none.
        text_field: Field of JSON Lines or column of Parquet with the text.
        encoding: Of text files.
        validation_fraction: Of the corpus, not trained on.
        model: Fields of `GPTConfig`, and `preset` for the others.
        dtype: A dtype policy, such as `"mixed_bfloat16"`.
        seed: Of weights, dropout and the order of the data.
        steps: Optimizer steps; a multiple of `evaluate_every`.
        batch_size: Sequences in a step.
        sequence_length: Tokens in one. Defaults to the model's `context_length`.
        packing: `"windows"` or `"documents"`; see `keras_gpt.data.load_batches`.
        learning_rate: This and the next nine as in `training.compile_model`.
        final_learning_rate: Defaults to a tenth of `learning_rate`.
        warmup_steps: Defaults to 100, or to a tenth of a run of fewer than 1000.
        schedule: `"cosine"`, `"wsd"` or `"constant"`.
        optimizer: `"adamw"` or `"muon"`.
        weight_decay: On matrices.
        beta_1: Of AdamW.
        beta_2: Of AdamW.
        clip_norm: Largest norm of the gradients.
        accumulation_steps: Batches for one optimizer step.
        ema_momentum: Of the averaged weights, which then are evaluated and saved.
        jit_compile: Defaults to what is fastest.
        evaluate_every: Steps between validations, samples and checkpoints.
        evaluation_batches: Batches of each validation. Defaults to all.
        early_stopping: Stop after so many validations without a better one.
        sample_prompt: Start of the sample texts. Defaults to the corpus's own.
        sample_tokens: Length of the sample texts; 0 for none.
    """

    corpus: str = "embedded"
    data: str | None = None
    output: str = "runs/gpt"
    tokenizer: str = "byte_pair"
    vocab_size: int | None = None
    text_field: str = "text"
    encoding: str = "utf-8"
    validation_fraction: float = 0.1
    model: dict = field(default_factory=lambda: {"preset": "quickstart"})
    dtype: str = "float32"
    seed: int = 0
    steps: int = 2000
    batch_size: int = 32
    sequence_length: int | None = None
    packing: str = "windows"
    learning_rate: float = 1e-3
    final_learning_rate: float | None = None
    warmup_steps: int | None = None
    schedule: str = "cosine"
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.95
    clip_norm: float | None = 1.0
    accumulation_steps: int = 1
    ema_momentum: float | None = None
    jit_compile: bool | None = None
    evaluate_every: int = 250
    evaluation_batches: int | None = None
    early_stopping: int | None = None
    sample_prompt: str | None = None
    sample_tokens: int = 128

    def __post_init__(self):
        for name in ("steps", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be a positive integer. Received: "
                    f"{name}={getattr(self, name)}."
                )
        self.evaluate_every = min(self.evaluate_every, self.steps)
        if self.warmup_steps is None:
            self.warmup_steps = min(100, self.steps // 10)
        if self.steps % self.evaluate_every:
            nearest = round(self.steps / self.evaluate_every) * self.evaluate_every
            raise ValueError(
                "`steps` must be a multiple of `evaluate_every`. Received: "
                f"steps={self.steps}, evaluate_every={self.evaluate_every}. "
                f"Try steps={nearest}."
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "RunConfig":
        """Make a configuration from what a YAML file holds.

        Raises:
            ValueError: A field is unknown or its value has the wrong type.
        """
        hints = typing.get_type_hints(cls)
        for name in fields:
            if name not in hints:
                nearest = difflib.get_close_matches(name, hints, n=1)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
                raise ValueError(
                    f"Unknown field of a run. Received: {name!r}.{hint} One of: "
                    f"{', '.join(hints)}."
                )
        return cls(**{n: _convert(n, v, hints[n]) for n, v in fields.items()})

    @classmethod
    def from_yaml(cls, path: str | Path | None, overrides: list[str]) -> "RunConfig":
        """Read a YAML file and put `NAME=VALUE` overrides on top.

        Args:
            path: The file, or `None` for the defaults.
            overrides: Such as `learning_rate=3e-4` or `model.num_layers=8`.

        Raises:
            ValueError: The file is not YAML, or a field is wrong.
        """
        import yaml

        fields: dict[str, Any] = {}
        if path is not None:
            try:
                fields = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
            except yaml.YAMLError as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{path} is not valid YAML: {reason}.") from error
            if not isinstance(fields, dict):
                raise ValueError(f"{path} must hold `name: value` lines.")
        for override in overrides:
            name, equals, value = override.partition("=")
            if not equals:
                raise ValueError(
                    f"Overrides look like NAME=VALUE. Received: {override!r}."
                )
            place = fields
            *parents, name = name.split(".")
            for parent in parents:
                place = place.setdefault(parent, {})
            place[name] = yaml.safe_load(value)
        return cls.from_dict(fields)


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
        _note_result(output, time.perf_counter() - start)
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
    packages = ("keras-gpt", "keras", "tensorflow", "jax", "torch", "numpy")
    installed = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    write_json(
        output / "environment.json",
        {
            "backend": keras.backend.backend(),
            "python": platform.python_version(),
            "machine": platform.platform(),
            **{name: metadata.version(name) for name in packages if name in installed},
        },
    )


def _prepare(config, output, resume, console):
    """Get the tokenizer and the token files."""
    if config.data is not None:
        if config.tokenizer in TOKENIZERS:
            raise ValueError(
                "`data` is already tokenized: name the folder of its tokenizer too, "
                f"tokenizer=FOLDER. Received: tokenizer={config.tokenizer!r}."
            )
        tokenizer = tokenizers.load(config.tokenizer)
        found = data.read_metadata(config.data)["tokenizer_fingerprint"]
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
    logs_of_an_epoch = [
        loss_stop,
        throughput,
        training.BitsPerByte(counts["num_tokens"] / counts["num_bytes"]),
        training.SaveState(output / STATE_FILE, config.evaluate_every),
    ]
    if config.ema_momentum is not None:
        logs_of_an_epoch.append(keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    best = _best_validation_loss(output / LOG_FILE) if step else math.inf
    callbacks = [
        *logs_of_an_epoch,
        training.SaveBest(lambda: lm.save(output), best=best),
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
    if config.early_stopping is not None:
        callbacks.append(keras.callbacks.EarlyStopping(patience=config.early_stopping))
    lm.model.fit(
        batches,
        epochs=config.steps // config.evaluate_every,
        initial_epoch=epoch,
        steps_per_epoch=config.evaluate_every * config.accumulation_steps,
        validation_data=validation,
        validation_steps=len(validation),
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )
    return loss_stop


def _sampler(config, lm, directory):
    """A function that continues the prompt of the samples, or None."""
    if config.sample_tokens == 0:
        return None
    prompt = config.sample_prompt
    if prompt is None:
        prompt = _first_words(lm, directory)

    def sample():
        return prompt + lm.generate(prompt, config.sample_tokens, seed=config.seed)

    return sample


def _first_words(lm, directory):
    ids = data.TokenDataset(directory, "val")[0:8]
    return lm.tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def first_words(output: str | Path) -> str:
    """The beginning of a run's validation text, as a prompt."""
    return _first_words(LanguageModel.load(output), Path(output) / DATA_FOLDER)


def evaluate_validation(output: str | Path, lm: LanguageModel) -> Evaluation:
    """Evaluate a model on all of a run's validation tokens.

    Args:
        output: The run's folder.
        lm: The model.

    Raises:
        FileNotFoundError: The folder has no prepared data.
    """
    config = RunConfig.from_yaml(Path(output) / CONFIG_FILE, [])
    directory = Path(config.data) if config.data else Path(output) / DATA_FOLDER
    tokens = data.TokenDataset(directory, "val")
    return lm.evaluate_ids(
        tokens[i : i + 2**16].tolist() for i in range(0, len(tokens), 2**16)
    )


def read_log(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of a run's `log.csv`, empty cells as NaN."""
    table = np.genfromtxt(path, delimiter=",", names=True, encoding="utf-8")
    return {name: np.atleast_1d(table[name]) for name in table.dtype.names or ()}


def _best_validation_loss(path):
    return float(np.min(read_log(path)["val_loss"])) if path.is_file() else math.inf


def _note_result(output, seconds):
    log = read_log(output / LOG_FILE)
    best = int(np.argmin(log["val_loss"]))
    write_json(
        output / RESULT_FILE,
        {
            "validation_loss": float(log["val_loss"][best]),
            "validation_bits_per_byte": float(log["val_bits_per_byte"][best]),
            "best_step": int(log["step"][best]),
            "last_training_loss": float(log["loss"][-1]),
            "last_validation_loss": float(log["val_loss"][-1]),
            "seconds": round(seconds, 1),
        },
    )


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


def _convert(name, value, hint):
    """Convert what YAML read to the field's type; YAML takes 1e-3 for a text."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    try:
        if kind is int and not isinstance(value, bool) and float(value) == int(value):
            return int(value)
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is bool and isinstance(value, bool):
            return value
        if kind is str and isinstance(value, str | int | float):
            return str(value)
        if kind is dict and isinstance(value, dict):
            return value
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"`{name}` must be of type {kind.__name__}. Received: {name}={value!r}."
    )
