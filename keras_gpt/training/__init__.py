"""Training with `model.fit`: how to compile, what to watch, where to resume."""

from keras_gpt.training.callbacks import (
    EventLog,
    ProgressBar,
    StopOnNonFiniteLoss,
    Throughput,
    measure_peak_flops,
)
from keras_gpt.training.recipe import WarmupSchedule, compile_model
from keras_gpt.training.state import load_state, save_state

__all__ = [
    "EventLog",
    "ProgressBar",
    "StopOnNonFiniteLoss",
    "Throughput",
    "WarmupSchedule",
    "compile_model",
    "load_state",
    "measure_peak_flops",
    "save_state",
]
