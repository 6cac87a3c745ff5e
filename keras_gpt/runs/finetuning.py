"""Doing a fine-tuning run: examples, LoRA or all weights, `model.fit`, an adapter."""

import copy
import dataclasses
import math
import random
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_gpt import data, tasks, training
from keras_gpt.language_model import LanguageModel
from keras_gpt.model import GPT
from keras_gpt.runs.fitting import claim, compile_and_load, fit
from keras_gpt.runs.settings import Recipe, check_steps

_LONGEST_ROW = 512
_VALIDATIONS = 5


@dataclass(kw_only=True)
class FinetuneConfig(Recipe):
    """All that defines a fine-tuning run; `run.yaml` in its folder holds it.

    Args:
        model: What `LanguageModel.from_pretrained` reads: a folder, a `.gguf` file,
            `hf://owner/name`, `"smollm2"`.
        data: JSON Lines or Parquet with the fields of a task (`keras_gpt.tasks`), or
            a folder with `train.jsonl` and perhaps `validation.jsonl`. From `prompt`,
            `chosen` and `rejected` the model learns by DPO which answer is better.
        validation: A file to validate with. Defaults to the folder's, or to a part
            of `data`.
        validation_fraction: How large that part is.
        output: The run's folder.
        instruction: What a chat model is told before the question. Defaults to the
            task's own.
        shorten: Whether prompts that are too long are shortened; answers never are.
        beta: How dear it is for DPO to leave the model as it was.
        lora_rank: Rank of the adapters; 0 trains all weights.
        lora_alpha: As of `training.enable_lora`, as are the next two.
        lora_targets: Joined by commas. Defaults to all.
        lora_dropout: Fraction of an adapter's input dropped in training.
        quantize: `"int8"` keeps the frozen weights in int8.
        dtype: A dtype policy. Defaults to Keras's global one.
        seed: Of adapters, dropout and the order of the data.
        epochs: How often each example is seen, where `steps` isn't given.
        steps: Optimizer steps.
        batch_size: Rows in a step.
        sequence_length: Tokens in a row. Defaults to 512, or the model's context if
            that is shorter.
        packing: Whether several examples share a row. Defaults to whether the
            tokenizer has an end of text to keep them apart.
        learning_rate: Defaults to 5e-4 for adapters, 5e-5 for all weights.
        final_learning_rate: This and the next as in `training.compile_model`.
        warmup_steps: Defaults to a twentieth of the steps.
        schedule: `"cosine"`, `"wsd"` or `"constant"`.
        optimizer: `"adamw"` or `"muon"`.
        weight_decay: On matrices.
        beta_1: Of AdamW.
        beta_2: Of AdamW.
        clip_norm: Largest norm of the gradients.
        accumulation_steps: Batches for one optimizer step.
        ema_momentum: Of the averaged weights, which then are evaluated and saved.
        jit_compile: Defaults to what is fastest.
        evaluate_every: Steps between validations and checkpoints. Defaults to a
            fifth of the steps.
        early_stopping: Stop after so many validations without a better one.
        sample_tokens: Length of the answer that is noted at each validation; 0 for
            none.
    """

    model: str = "smollm2"
    data: str = "examples.jsonl"
    validation: str | None = None
    validation_fraction: float = 0.1
    output: str = "runs/finetuned"
    instruction: str | None = None
    shorten: bool = True
    beta: float = 0.1
    lora_rank: int = 16
    lora_alpha: float | None = None
    lora_targets: str = ",".join(training.LORA_TARGETS)
    lora_dropout: float = 0.0
    quantize: str | None = None
    dtype: str | None = None
    seed: int = 0
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 4
    sequence_length: int | None = None
    packing: bool | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.0
    evaluate_every: int | None = None
    early_stopping: int | None = None
    sample_tokens: int = 48

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = 5e-4 if self.lora_rank else 5e-5
        if self.quantize is not None and not self.lora_rank:
            raise ValueError(
                f"`quantize` needs adapters to train. Received: quantize="
                f"{self.quantize}, lora_rank=0. Give lora_rank=16."
            )

    def planned(self, num_rows: int) -> "FinetuneConfig":
        """The run with its numbers of steps, for so many rows of examples."""
        steps = self.steps
        if steps is None:
            rows_per_step = self.batch_size * self.accumulation_steps
            steps = max(1, math.ceil(self.epochs * num_rows / rows_per_step))
        every = self.evaluate_every or max(1, steps // _VALIDATIONS)
        if self.steps is None:
            steps = max(1, steps // every) * every  # whole validations
        elif self.evaluate_every is None:
            every = max(n for n in range(1, every + 1) if steps % n == 0)
        warmup = self.warmup_steps
        planned = dataclasses.replace(
            self,
            steps=steps,
            evaluate_every=every,
            warmup_steps=steps // 20 if warmup is None else warmup,
        )
        check_steps(planned)
        return planned


def finetune(
    config: FinetuneConfig, *, resume: bool = False, console=None
) -> LanguageModel:
    """Do a fine-tuning run: examples, adapters, `model.fit`, checkpoints, logs.

    The folder `config.output` then holds the best adapter by validation loss, or the
    whole model with `lora_rank=0`, which `LanguageModel.load` reads; and what
    `runs.train` writes.

    Args:
        config: The run.
        resume: Go on with a run that was stopped.
        console: A `rich.console.Console` for messages. Defaults to standard error.

    Returns:
        The best model.

    Raises:
        FileExistsError: The folder has a run, and `resume` is false.
        FileNotFoundError: There is no such model, or no such file of examples.
        ValueError: An example is bad, or something doesn't fit.
    """
    from rich.console import Console

    console = console or Console(stderr=True)
    claim(config, resume)
    random.seed(config.seed)
    train_file, validation_file = _find_files(config)
    with console.status("Loading the model"):
        lm = LanguageModel.from_pretrained(config.model, dtype=config.dtype)
    length = min(config.sequence_length or _LONGEST_ROW, lm.model.config.context_length)
    _, first = next(data.read_records(train_file), ("", {}))
    prepare = _prepare_preferences if "chosen" in first else _prepare_examples
    model, load, num_rows, about = prepare(
        config, lm, train_file, validation_file, length
    )
    config = config.planned(num_rows)
    claim(config, True)
    step = compile_and_load(config, model, resume=resume)
    gpt = getattr(model, "gpt", model)
    _announce(config, gpt, about, length, step, console)
    # the model in training with the rest of the language model, to save and to sample
    trained = copy.copy(lm)
    trained.model = gpt

    def save():
        if config.lora_rank:
            trained.save_adapter(config.output, base=config.model)
            return
        # into the model whose configuration doesn't part packed examples
        for old, new in zip(lm.model.weights, gpt.weights, strict=True):
            old.assign(new)
        lm.save(config.output)

    fit(
        config,
        model,
        load("train", start_step=step * config.accumulation_steps),
        load("validation", order="sequential"),
        save=save,
        tokens_per_batch=config.batch_size * length * (1 if gpt is model else 2),
        flops_per_token=gpt.count_flops_per_token(length),
        step=step,
        console=console,
        sample=_sampler(config, trained, about["sample"]),
    )
    return LanguageModel.load(config.output, dtype=config.dtype)


def _find_files(config):
    """The files to train on and to validate with, the latter perhaps `None`."""
    train_file = Path(config.data)
    validation_file = config.validation and Path(config.validation)
    if train_file.is_dir():
        folder = train_file
        found = [folder / f"train{suffix}" for suffix in (".jsonl", ".parquet")]
        train_file = next((path for path in found if path.is_file()), found[0])
        beside = folder / f"validation{train_file.suffix}"
        if validation_file is None and beside.is_file():
            validation_file = beside
    return train_file, validation_file


def _prepare_examples(config, lm, train_file, validation_file, length):
    """What learns answers.

    Returns:
        The model; a function that loads the batches of a split; the number of rows to
        train on; and what to say of the examples.
    """
    if config.instruction is not None:
        _, first = next(data.read_records(train_file))
        lm.tasks[tasks.find_task(first)] = {"instruction": config.instruction}

    def read(path):
        return tasks.read_examples(lm, path, length, shorten=config.shorten)

    examples, about = read(train_file)
    if validation_file is not None:
        validation, _ = read(validation_file)
    else:
        examples, validation = _split(config, examples, train_file)
    lm.tasks.update(about["tasks"])
    separator_id = _choose_separator(config, lm, examples + validation)
    splits = {"train": examples, "validation": validation}

    def load(split, **options):
        return data.load_examples(
            splits[split],
            config.batch_size,
            length,
            config.seed,
            separator_id=separator_id,
            **options,
        )

    num_rows = data.count_rows(examples, length, separator_id)
    model = _prepare_model(config, lm, separator_id)
    tokens = sum(len(example.token_ids) for example in examples)
    learned = sum(example.num_answer_tokens for example in examples)
    shortened = about["num_shortened"]
    summary = (
        f"{len(examples):,} examples of {tokens:,} tokens, of which {learned:,} are "
        f"learned" + (f"; {shortened:,} were shortened" if shortened else "")
    )
    return model, load, num_rows, {"summary": summary, "sample": validation[0]}


def _prepare_preferences(config, lm, train_file, validation_file, length):
    """What learns which of two answers is better; returns as `_prepare_examples`."""
    pairs = tasks.read_preferences(lm, train_file, length + 1)
    if validation_file is not None:
        validation = tasks.read_preferences(lm, validation_file, length + 1)
    else:
        pairs, validation = _split(config, pairs, train_file)
    model = _prepare_model(config, lm, None)
    splits = {
        name: (found, training.reference_margins(model, found, length))
        for name, found in (("train", pairs), ("validation", validation))
    }
    if not config.lora_rank:
        # `lm` gets the weights back when they are saved: two models
        model = _copy(lm.model, lm.model.config)

    def load(split, **options):
        return training.load_preferences(
            *splits[split], config.batch_size, length, config.seed, **options
        )

    about = {
        "summary": f"{len(pairs):,} pairs of answers",
        "sample": validation[0][0],
    }
    preferences = training.PreferenceModel(model, config.beta)
    return preferences, load, len(pairs), about


def _split(config, examples, path):
    """A part of the examples to train on, and one to validate with."""
    order = np.random.default_rng(config.seed).permutation(len(examples))
    count = max(1, round(config.validation_fraction * len(examples)))
    if count >= len(examples):
        raise ValueError(
            f"{path} has {len(examples)} records, of which none would be left to train "
            "on. Give more, or `validation`."
        )
    return (
        [examples[i] for i in sorted(order[count:])],
        [examples[i] for i in order[:count]],
    )


def _choose_separator(config, lm, examples):
    """The id that keeps packed examples apart, or `None` for a row for each."""
    separator_id = lm.model.config.document_separator_id
    if separator_id is None:
        separator_id = lm.tokenizer.end_of_text_id
    inside = separator_id is None or any(
        separator_id in example.token_ids[:-1] for example in examples
    )
    if config.packing and inside:
        raise ValueError(
            "`packing` needs an end-of-text token that no example holds inside. "
            "Received: packing=true. Leave it out: packing=false."
        )
    return None if inside or config.packing is False else separator_id


def _prepare_model(config, lm, separator_id):
    """The GPT to train: with packed examples apart, int8 and adapters if wanted."""
    model = lm.model
    if separator_id not in (None, model.config.document_separator_id):
        apart = dataclasses.replace(model.config, document_separator_id=separator_id)
        model = _copy(model, apart)
        if config.lora_rank:
            lm.model = model  # the other's memory is free
    if config.quantize is not None:
        model.quantize(config.quantize)
    if config.lora_rank:
        training.enable_lora(
            model,
            config.lora_rank,
            alpha=config.lora_alpha,
            targets=config.lora_targets.split(","),
            dropout_rate=config.lora_dropout,
        )
    return model


def _copy(model, config):
    """A GPT with the weights of another."""
    twin = GPT(config, dtype=model.dtype_policy, initial_weights=False)
    for new, old in zip(twin.weights, model.weights, strict=True):
        new.assign(old)
    return twin


def _announce(config, model, about, length, step, console):
    """Say what is trained, on what, and what memory it takes."""
    counts = training.count_trainable(model)
    console.print(
        f"Training {counts['trainable']:,} of {counts['parameters']:,} parameters "
        f"({counts['trainable'] / counts['parameters']:.1%}) on "
        f"{keras.backend.backend()}. Weights take "
        f"{counts['weight_bytes'] / 1e6:,.0f} MB, gradients and optimizer "
        f"{counts['training_bytes'] / 1e6:,.0f} MB.\n"
        f"{about['summary']}: {config.steps:,} steps of {config.batch_size} x "
        f"{length} tokens" + (f", going on at step {step:,}" if step else ""),
        highlight=False,
        soft_wrap=True,
    )


def _sampler(config, lm, example):
    """A function that shows what the model answers to an example, or `None`."""
    if config.sample_tokens == 0:
        return None
    prompt = example.token_ids[: example.is_answer.index(True)]

    def sample():
        [answer] = lm.generate_from_ids([prompt], config.sample_tokens, temperature=0)
        return f"{lm.tokenizer.decode(prompt)}{answer}"

    return sample
