"""Doing a fine-tuning run: examples, LoRA or all weights, `model.fit`, an adapter."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from keras_gpt import data, tasks, training
from keras_gpt.backend import hosts
from keras_gpt.language_model import LanguageModel
from keras_gpt.model import GPT
from keras_gpt.runs.config import FinetuneConfig
from keras_gpt.runs.fitting import fit
from keras_gpt.runs.folder import claimed
from keras_gpt.runs.memory import check_memory
from keras_gpt.runs.report import draw_attention

_LONGEST_ROW = 512


def finetune(
    config: FinetuneConfig, *, resume: bool = False, console=None
) -> LanguageModel:
    """Do a fine-tuning run: examples, adapters, `model.fit`, checkpoints, logs.

    The folder `config.output` then holds the best adapter by validation loss, or the
    whole model with `lora_rank=0`, which `LanguageModel.load` reads; and what
    `runs.train` writes.

    Args:
        config: The run.
        resume: Go on with the run that was stopped, with the fields that it had; of
            those given here only some may be others (`runs.MAY_CHANGE`).
        console: A `rich.console.Console` for messages. Defaults to standard error.

    Returns:
        The best model.

    Raises:
        FileExistsError: The folder has a run or a model, and `resume` is false.
        FileNotFoundError: There is no such model, no such file of examples, or nothing
            to resume.
        ValueError: An example is bad, something doesn't fit, or the run would go on as
            another.
    """
    console = console or Console(stderr=True)
    with claimed(config, resume, console) as config:
        files = _find_files(config.data, config.validation)
        [first, *_] = [_read_first(path) for path in files if path is not None]
        with console.status("Loading the model"):
            lm = LanguageModel.from_pretrained(config.model, dtype=config.dtype)
        most = lm.model.config.context_length
        length = min(config.sequence_length or _LONGEST_ROW, most)
        prepare = _prepare_preferences if "chosen" in first else _prepare_examples
        model, load, num_rows, summary, example = prepare(
            config, lm, files, first, length
        )
        config = config.planned(num_rows)
        rows = 2 if "chosen" in first else 1  # of a pair both answers
        planned = config.replaced(batch_size=rows * config.batch_size)
        memory = check_memory(planned, getattr(model, "gpt", model), length)
        # the model in training with the rest of the language model, to save and sample
        trained = copy.copy(lm)
        trained.model = getattr(model, "gpt", model)

        def save():
            if config.lora_rank:
                trained.save_adapter(config.output, base=config.model)
                return
            # into the model whose configuration doesn't part packed examples
            _assign(lm.model, trained.model)
            lm.save(config.output)

        def sample():
            prompt = example.token_ids[: example.is_answer.index(True)]
            [answer] = trained.generate_from_ids(
                [prompt], config.sample_tokens, temperature=0
            )
            return f"{lm.tokenizer.decode(prompt)}{answer}"

        fit(
            config,
            model,
            load,
            resume=resume,
            console=console,
            intro=f"{_describe(trained.model)}\n{memory.describe()}\n{summary}",
            sequence_length=length,
            save=save,
            sample=sample,
            picture=lambda: draw_attention(trained, example.token_ids),
        )
        return LanguageModel.load(config.output, dtype=config.dtype)


def read_first_example(examples: str | Path) -> dict[str, Any]:
    """The first record to train on, of a file of examples or a folder with files."""
    return _read_first(_find_files(examples)[0])


def _find_files(examples, validation=None):
    """The files to train on and to validate with, the latter perhaps `None`."""
    train_file = Path(examples)
    validation_file = validation and Path(validation)
    if train_file.is_dir():
        folder = train_file
        found = [folder / f"train{suffix}" for suffix in (".jsonl", ".parquet")]
        train_file = next((path for path in found if path.is_file()), found[0])
        beside = folder / f"validation{train_file.suffix}"
        if validation_file is None and beside.is_file():
            validation_file = beside
    return train_file, validation_file


def _read_first(path):
    """The first record of a file, which tells what kind they are."""
    for _, record in data.read_records(path):
        return record
    raise ValueError(f"{path} has no records.")


def _prepare_examples(config, lm, files, first, length):
    """What learns answers.

    Returns:
        The model; a function that loads the batches of a split; the number of rows to
        train on; what to say of the examples; and one to sample with.
    """
    if config.instruction is not None:
        lm.tasks[tasks.find_task(first)] = {"instruction": config.instruction}

    def read(path):
        return tasks.read_examples(lm, path, length, shorten=config.shorten)

    splits, about = _read_splits(config, files, read)
    examples = splits["train"]
    lm.tasks.update(about["tasks"])
    separator_id = _choose_separator(config, lm, examples + splits["val"])

    def load(split, **options):
        return data.load_examples(
            splits[split],
            config.batch_size,
            length,
            config.seed,
            separator_id=separator_id,
            **options,
        )

    tokens = sum(len(example.token_ids) for example in examples)
    learned = sum(example.num_answer_tokens for example in examples)
    shortened = about["num_shortened"]
    summary = (
        f"{len(examples):,} examples of {tokens:,} tokens, of which {learned:,} are "
        f"learned" + (f"; {shortened:,} were shortened" if shortened else "")
    )
    num_rows = data.count_rows(examples, length, separator_id)
    model = _prepare_model(config, lm, separator_id)
    return model, load, num_rows, summary, splits["val"][0]


def _prepare_preferences(config, lm, files, first, length):
    """What learns which of two answers is better; returns as `_prepare_examples`."""
    del first
    if hosts.place()[1] > 1:
        raise ValueError(
            f"Preferences are learned on one host. Received: data={config.data} on "
            f"{hosts.place()[1]} hosts. Take one of them."
        )

    def read(path):
        return tasks.read_preferences(lm, path, length + 1), None

    splits, _ = _read_splits(config, files, read)
    lm.tasks.setdefault("complete", {})  # that is how they are asked
    model = _prepare_model(config, lm, None)
    margins = {
        split: training.reference_margins(model, pairs, length)
        for split, pairs in splits.items()
    }
    if not config.lora_rank:
        # `lm` gets the weights back when they are saved: two models
        model = _copy(lm.model, lm.model.config)

    def load(split, pad_remainder=False, **options):
        options["drop_remainder"] = pad_remainder  # a pair has no weight to pad with
        pairs, batch_size = splits[split], config.batch_size
        return training.load_preferences(
            pairs, margins[split], batch_size, length, config.seed, **options
        )

    num_pairs = len(splits["train"])
    preferences = training.PreferenceModel(model, config.beta)
    summary = f"{num_pairs:,} pairs of answers"
    return preferences, load, num_pairs, summary, splits["val"][0][0]


def _read_splits(config, files, read):
    """Examples by split, of a file each or parts of one, and what is said of them."""
    train_file, validation_file = files
    examples, about = read(train_file)
    if validation_file is not None:
        return {"train": examples, "val": read(validation_file)[0]}, about
    order = np.random.default_rng(config.seed).permutation(len(examples))
    count = max(1, round(config.validation_fraction * len(examples)))
    if count >= len(examples):
        raise ValueError(
            f"{train_file} has {len(examples)} records, of which none would be left to "
            "train on. Give more, or `validation`."
        )
    places = {"train": sorted(order[count:]), "val": order[:count]}
    return {name: [examples[i] for i in found] for name, found in places.items()}, about


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
    _assign(twin, model)
    return twin


def _assign(model, other):
    for new, old in zip(model.weights, other.weights, strict=True):
        new.assign(old)


def _describe(model):
    """What is trained, and on what."""
    counts = training.count_trainable(model)
    return (
        f"Training {counts['trainable']:,} of {counts['parameters']:,} parameters "
        f"({counts['trainable'] / counts['parameters']:.1%}) on "
        f"{keras.backend.backend()}"
    )
