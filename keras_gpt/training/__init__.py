"""Training with `model.fit`: how to compile, what to watch, where to resume."""

from keras_gpt.training import callbacks
from keras_gpt.training.devices import (
    gathered,
    join_hosts,
    make_distribution,
    share_of_batches,
)
from keras_gpt.training.lora import (
    ADAPTER_FILE,
    LORA_TARGETS,
    count_trainable,
    enable_lora,
    has_lora,
    load_adapter,
    merge_lora,
    read_adapter,
    remove_lora,
    save_adapter,
    without_lora,
)
from keras_gpt.training.parts import check_savable
from keras_gpt.training.preference import (
    PreferenceModel,
    load_preferences,
    reference_margins,
)
from keras_gpt.training.recipe import WarmupSchedule, compile_model
from keras_gpt.training.row_adapters import load_adapters, remove_adapters
from keras_gpt.training.state import load_state, save_state

__all__ = [
    "ADAPTER_FILE",
    "LORA_TARGETS",
    "PreferenceModel",
    "WarmupSchedule",
    "callbacks",
    "check_savable",
    "compile_model",
    "count_trainable",
    "enable_lora",
    "gathered",
    "has_lora",
    "join_hosts",
    "load_adapter",
    "load_adapters",
    "load_preferences",
    "load_state",
    "make_distribution",
    "merge_lora",
    "read_adapter",
    "reference_margins",
    "remove_adapters",
    "remove_lora",
    "save_adapter",
    "save_state",
    "share_of_batches",
    "without_lora",
]
