"""Training with `model.fit`: how to compile, what to watch, where to resume."""

from keras_gpt.training.callbacks import (
    BitsPerByte,
    EventLog,
    ProgressBar,
    SaveBest,
    SaveState,
    StopOnNonFiniteLoss,
    Throughput,
    measure_peak_flops,
)
from keras_gpt.training.recipe import WarmupSchedule, compile_model
from keras_gpt.training.state import load_state, save_state

__all__ = [
    "BitsPerByte",
    "EventLog",
    "ProgressBar",
    "SaveBest",
    "SaveState",
    "StopOnNonFiniteLoss",
    "Throughput",
    "WarmupSchedule",
    "compile_model",
    "load_state",
    "measure_peak_flops",
    "save_state",
]
