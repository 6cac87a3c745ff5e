"""All that defines a run, in the parts that the places of a run take."""

import math
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

import keras
from pydantic import AfterValidator, Field, model_validator

from keras_gpt import training
from keras_gpt.config import FAST_ARCHITECTURE, GPTConfig, check_choice
from keras_gpt.runs.settings import (
    Bool,
    Count,
    Fraction,
    Interval,
    NotNegative,
    Part,
    Positive,
    Settings,
    WholeNumber,
)
from keras_gpt.training.recipe import OPTIMIZERS, RECIPES, SCHEDULES

_VALIDATIONS = 5  # of a fine-tuning run, where nothing is said of them


def _check_dtype(dtype):
    try:
        keras.dtype_policies.get(dtype)
    except ValueError as error:
        raise ValueError("must be such as float32 or mixed_bfloat16") from error
    return dtype


_DtypePolicy = Annotated[str, AfterValidator(_check_dtype)]


class Recipe(Settings):
    """How a model is compiled, as of `training.compile_model`.

    Args:
        learning_rate: The highest. In fine-tuning it defaults to 5e-4 for adapters,
            5e-5 for all weights.
        final_learning_rate: Defaults to a tenth of `learning_rate`.
        warmup_steps: In training it defaults to 100, or to a tenth of a run of fewer
            than 1000 steps; in fine-tuning to a twentieth of the steps.
        schedule: `"cosine"`, `"wsd"` or `"constant"`.
        optimizer: `"adamw"` or `"muon"`.
        momentum: Of Muon.
        weight_decay: On matrices.
        beta_1: Of AdamW.
        beta_2: Of AdamW.
        clip_norm: Largest norm of the gradients.
        accumulation_steps: Batches for one optimizer step.
        ema_momentum: Of the averaged weights, which then are evaluated and saved.
        jit_compile: Defaults to what is fastest.
        remat: Compute what is inside each block twice, for less memory.
    """

    learning_rate: Positive = 1e-3
    final_learning_rate: NotNegative | None = None
    warmup_steps: WholeNumber | None = None
    schedule: Literal[SCHEDULES] = "cosine"
    optimizer: Literal[OPTIMIZERS] = "adamw"
    momentum: Fraction = 0.95
    weight_decay: NotNegative = 0.1
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.95
    clip_norm: Positive | None = 1.0
    accumulation_steps: Count = 1
    ema_momentum: Fraction | None = None
    jit_compile: Bool | None = None
    remat: Bool = False

    def arguments(self) -> dict[str, Any]:
        """These fields alone, as arguments of `compile_model`."""
        return self.model_dump(include=set(Recipe.model_fields))


class Plan(Recipe):
    """What is done when, and where it is kept.

    Args:
        output: The run's folder.
        dtype: A dtype policy, such as `"mixed_bfloat16"`. In fine-tuning it defaults to
            Keras's global one.
        seed: Of weights or adapters, dropout and the order of the data.
        steps: Optimizer steps; a multiple of `evaluate_every`.
        batch_size: Sequences in a step.
        sequence_length: Tokens in one. Defaults to the model's `context_length`, in
            fine-tuning to 512 if that is shorter.
        evaluate_every: Steps between validations, samples and checkpoints. In
            fine-tuning it defaults to a fifth of the steps.
        save_every: Steps between states from which a killed run goes on, or minutes,
            such as `"10min"`; there is one at each validation too.
        early_stopping: Stop after so many validations without a better one.
        sample_tokens: Length of the sample texts, or of the answer that is noted at
            each validation; 0 for none.
        devices: `"all"`, a number or such as `"fsdp:4"`, as of
            `training.make_distribution`. Defaults to one device.
    """

    output: str = "runs/gpt"
    dtype: _DtypePolicy = "float32"
    seed: WholeNumber = 0
    steps: Count = 2000
    batch_size: Count = 32
    sequence_length: Count | None = None
    evaluate_every: Count = 250
    save_every: Interval = "10min"
    early_stopping: Count | None = None
    sample_tokens: WholeNumber = 128
    devices: str | None = None

    @model_validator(mode="after")
    def _check_steps(self):
        steps, every, warmup = self.steps, self.evaluate_every, self.warmup_steps
        if steps and every and steps % min(every, steps):
            raise ValueError(
                "`steps` must be a multiple of `evaluate_every`. Received: "
                f"steps={steps}, evaluate_every={every}. "
                f"Try steps={round(steps / every) * every}."
            )
        if steps and warmup and warmup >= steps:
            raise ValueError(
                "`warmup_steps` must be below `steps`. Received: "
                f"warmup_steps={warmup}, steps={steps}."
            )
        return self


class RunConfig(Plan):
    """All that defines a training run; `run.yaml` in its folder holds it.

    Its fields are those of its parts, `Plan` and `Recipe`, and:

    Args:
        recipe: `"classic"`, or `"fast"`: what `optimizer`, its `momentum`
            and rates default to, as of `training.compile_model`, and of the model what
            `FAST_ARCHITECTURE` names and `model` doesn't.
        corpus: `"embedded"`, or the path of a text file, a folder, JSON Lines or
            Parquet (`keras_gpt.data.prepare`).
        data: A folder that `keras-gpt prepare` wrote, instead of `corpus`.
        tokenizer: `"byte_pair"`, `"sentencepiece"` or `"characters"`, to be trained on
            the corpus, or the folder of one.
        vocab_size: Of the tokenizer to train; characters need none.
        text_field: Field of JSON Lines or column of Parquet with the text.
        encoding: Of text files.
        validation_fraction: Of the corpus, not trained on.
        model: Fields of `GPTConfig`, and `preset` for the others.
        packing: `"windows"` or `"documents"`; see `keras_gpt.data.load_batches`.
        evaluation_batches: Batches of each validation. Defaults to all.
        sample_prompt: Start of the sample texts. Defaults to the corpus's own.
    """

    inner_fields = tuple(f"model.{field.name}" for field in fields(GPTConfig))
    recipe: Literal[tuple(RECIPES)] = "classic"
    corpus: str = "embedded"
    data: str | None = None
    tokenizer: str = "byte_pair"
    vocab_size: Count | None = None
    text_field: str = "text"
    encoding: str = "utf-8"
    validation_fraction: Part = 0.1
    model: dict[str, Any] = Field(default_factory=lambda: {"preset": "quickstart"})
    packing: Literal["windows", "documents"] = "windows"
    evaluation_batches: Count | None = None
    sample_prompt: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_recipe(cls, fields):
        return {**RECIPES.get(str(fields.get("recipe")), {}), **fields}

    @model_validator(mode="after")
    def _check(self):
        # no id is out of range: the size is the tokenizer's, if it isn't said
        most = self.architecture(vocab_size=2**31).context_length
        if self.sequence_length is not None and self.sequence_length > most:
            raise ValueError(
                "`sequence_length` must be at most the model's `context_length`. "
                f"Received: sequence_length={self.sequence_length}, "
                f"context_length={most}."
            )
        return self

    def architecture(self, **defaults: Any) -> GPTConfig:
        """The model's configuration, with defaults for what the run doesn't say."""
        fast = FAST_ARCHITECTURE if self.recipe == "fast" else {}
        fields = {**defaults, **fast, **self.model}
        preset = fields.pop("preset", None)
        if preset is None:
            return GPTConfig.from_dict(fields)
        return GPTConfig.from_preset(preset, **fields)

    def planned(self) -> Self:
        """The run with all its numbers; it validates at the end of a short one."""
        warmup = self.warmup_steps
        return self.replaced(
            evaluate_every=min(self.evaluate_every, self.steps),
            warmup_steps=min(100, self.steps // 10) if warmup is None else warmup,
        )


class FinetuneConfig(Plan):
    """All that defines a fine-tuning run; `run.yaml` in its folder holds it.

    Its fields are those of its parts, `Plan` and `Recipe`, and:

    Args:
        model: What `LanguageModel.from_pretrained` reads: a folder, a `.gguf` file,
            `hf://owner/name`, `"smollm2"`.
        data: JSON Lines or Parquet with the fields of a task (`keras_gpt.tasks`), or
            a folder with `train.jsonl` and perhaps `validation.jsonl`. From `prompt`,
            `chosen` and `rejected` the model learns by DPO which answer is better.
        validation: A file to validate with. Defaults to the folder's, or to a part
            of `data`.
        validation_fraction: How large that part is.
        instruction: What a chat model is told before the question. Defaults to the
            task's own.
        shorten: Whether prompts that are too long are shortened; answers never are.
        beta: How dear it is for DPO to leave the model as it was.
        lora_rank: Rank of the adapters; 0 trains all weights.
        lora_alpha: As of `training.enable_lora`, as are the next two.
        lora_targets: Joined by commas. Defaults to all.
        lora_dropout: Fraction of an adapter's input dropped in training.
        quantize: `"int8"` keeps the frozen weights in int8.
        epochs: How often each example is seen, where `steps` isn't given.
        packing: Whether several examples share a row. Defaults to whether the
            tokenizer has an end of text to keep them apart.
    """

    output: str = "runs/finetuned"
    dtype: _DtypePolicy | None = None
    learning_rate: Positive | None = None
    weight_decay: NotNegative = 0.0
    steps: Count | None = None
    batch_size: Count = 4
    evaluate_every: Count | None = None
    sample_tokens: WholeNumber = 48
    model: str = "smollm2"
    data: str = "examples.jsonl"
    validation: str | None = None
    validation_fraction: Fraction = 0.1
    instruction: str | None = None
    shorten: Bool = True
    beta: Positive = 0.1
    lora_rank: WholeNumber = 16
    lora_alpha: Positive | None = None
    lora_targets: str = ",".join(training.LORA_TARGETS)
    lora_dropout: Fraction = 0.0
    quantize: Literal["int8"] | None = None
    epochs: Positive = 1.0
    packing: Bool | None = None

    @model_validator(mode="after")
    def _check(self):
        if self.quantize is not None and not self.lora_rank:
            raise ValueError(
                f"`quantize` needs adapters to train. Received: quantize="
                f"{self.quantize}, lora_rank=0. Give lora_rank=16."
            )
        for name in self.lora_targets.split(","):
            check_choice("lora_targets", name, training.LORA_TARGETS)
        return self

    def planned(self, num_rows: int | None = None) -> Self:
        """The run with all its numbers, for so many rows of examples.

        Args:
            num_rows: Needed where the run doesn't say its `steps`.
        """
        steps = self.steps
        if steps is None:
            if num_rows is None:
                return self
            rows_per_step = self.batch_size * self.accumulation_steps
            steps = max(1, math.ceil(self.epochs * num_rows / rows_per_step))
        every = self.evaluate_every or max(1, steps // _VALIDATIONS)
        if self.steps is None:
            steps = max(1, steps // every) * every  # whole validations
        elif self.evaluate_every is None:
            every = max(n for n in range(1, every + 1) if steps % n == 0)
        rate = 5e-4 if self.lora_rank else 5e-5
        warmup = self.warmup_steps
        return self.replaced(
            learning_rate=self.learning_rate or rate,
            steps=steps,
            evaluate_every=min(every, steps),
            warmup_steps=steps // 20 if warmup is None else warmup,
        )
