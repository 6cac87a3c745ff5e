"""`RunConfig`: all that defines a training run, from YAML and the command line."""

from dataclasses import dataclass, field
from typing import Any

from keras_gpt.runs.settings import Recipe, check_steps


@dataclass(kw_only=True)
class RunConfig(Recipe):
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
    evaluate_every: int = 250
    evaluation_batches: int | None = None
    early_stopping: int | None = None
    sample_prompt: str | None = None
    sample_tokens: int = 128

    def __post_init__(self):
        check_steps(self)
        if self.warmup_steps is None:
            self.warmup_steps = min(100, self.steps // 10)

    @classmethod
    def defaults_of(cls, name: str) -> dict[str, Any]:
        """The preset that a run has when nothing is said of its model."""
        return {"preset": "quickstart"} if name == "model" else {}
