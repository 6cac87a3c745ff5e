"""`RunConfig`: all that defines a training run, from YAML and the command line."""

import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keras_gpt.config import suggest


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
                raise ValueError(
                    f"Unknown field of a run. {suggest('field', name, hints)}"
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
        if any(override.startswith("model.") for override in overrides):
            # the preset that a run has when nothing is said of its model
            fields.setdefault("model", {"preset": "quickstart"})
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
                if not isinstance(place, dict):
                    raise ValueError(
                        f"`{parent}` has no fields of its own. Received: {override!r}."
                    )
            try:
                place[name] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ValueError(
                    f"The value isn't valid YAML. Received: {override!r}. Put a text "
                    f"with special characters into quotes: {name}='\"...\"'."
                ) from error
        return cls.from_dict(fields)


def _convert(name, value, hint):
    """Convert what YAML read to the field's type; YAML takes 1e-3 for a text."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    try:
        if kind is int and not isinstance(value, bool) and float(value).is_integer():
            return int(float(value))
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
