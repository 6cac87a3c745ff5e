"""Training runs: from a corpus and a configuration to a folder with everything."""

from keras_gpt.runs.config import FinetuneConfig, RunConfig
from keras_gpt.runs.finetuning import finetune, read_first_example
from keras_gpt.runs.folder import MAY_CHANGE
from keras_gpt.runs.interrupts import noticed_interrupts
from keras_gpt.runs.memory import Memory, estimate_memory
from keras_gpt.runs.overview import Status, find_runs, plot_runs, read_status
from keras_gpt.runs.report import (
    CONFIG_FILE,
    DATA_FOLDER,
    EVENTS_FOLDER,
    PLOT_FILE,
    RESULT_FILE,
    read_log,
    read_result,
)
from keras_gpt.runs.sweep import PICTURE_FILE, TRIALS_FILE, Trial, sweep
from keras_gpt.runs.training import (
    evaluate_validation,
    first_words,
    train,
    train_tokenizer,
)

__all__ = [
    "CONFIG_FILE",
    "DATA_FOLDER",
    "EVENTS_FOLDER",
    "MAY_CHANGE",
    "PICTURE_FILE",
    "PLOT_FILE",
    "RESULT_FILE",
    "TRIALS_FILE",
    "FinetuneConfig",
    "Memory",
    "RunConfig",
    "Status",
    "Trial",
    "estimate_memory",
    "evaluate_validation",
    "find_runs",
    "finetune",
    "first_words",
    "noticed_interrupts",
    "plot_runs",
    "read_first_example",
    "read_log",
    "read_result",
    "read_status",
    "sweep",
    "train",
    "train_tokenizer",
]
