"""Between the settings in a GGUF file and a `GPTConfig`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_gpt.checkpoints import families
from keras_gpt.checkpoints.names import GGUF_GPT2, GGUF_LLAMA
from keras_gpt.checkpoints.settings import Settings
from keras_gpt.checkpoints.stored import StoredTensor
from keras_gpt.config import GPTConfig, check_choice
from keras_gpt.layers.rotary import rotary_frequencies

# Mistral's models are "llama" too
NAMES = {"gpt2": GGUF_GPT2, **dict.fromkeys(("llama", "qwen2", "qwen3"), GGUF_LLAMA)}
ROTARY_FREQUENCIES = "rope_freqs.weight"
# Widths of a head
_KEY_WIDTH = "attention.key_length"
_OTHER_WIDTHS = ("attention.value_length", "rope.dimension_count")
# What would change the outputs, and the values at which it doesn't
_NEUTRAL = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window_pattern": (),
    "attention.temperature_scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (0.0, 1.0),
    "use_parallel_residual": (False,),
}
# Llama 3.1 to 3.3, whose files hold only the factors that follow from these
_LLAMA3 = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0}
_LLAMA3_CONTEXT_LENGTH = 8192


def read_config(
    settings: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> GPTConfig:
    """Translate the settings of a model.

    Args:
        settings: The settings by key.
        tensors: The tensors by name.

    Raises:
        ValueError: The architecture or a setting isn't supported, or one is missing.
    """
    architecture = settings.get("general.architecture")
    check_choice("general.architecture", architecture, tuple(NAMES))
    section = Settings(settings, f"{architecture}.")
    for name, values in _NEUTRAL.items():
        section.require(name, *values)
    if "token_embd.weight" not in tensors:
        raise ValueError("It lacks the tensor token_embd.weight. Download it again.")
    names = NAMES[architecture].settings
    fields = {ours: section.integer(theirs) for ours, theirs in names.items()}
    fields["vocab_size"] = tensors["token_embd.weight"].shape[0]
    fields["tie_embeddings"] = _is_tied(tensors)
    if architecture == "gpt2":
        fields["norm_epsilon"] = section.number("attention.layer_norm_epsilon")
        return GPTConfig(**families.GPT2, **fields, activation="gelu_tanh")
    fields |= _read_llama(section, fields, tensors)
    return GPTConfig(**families.LLAMA, **fields)


def write_config(config: GPTConfig, architecture: str) -> dict[str, Any]:
    """Settings from which `read_config` and llama.cpp make the architecture."""
    names = NAMES[architecture].settings
    settings = {theirs: getattr(config, ours) for ours, theirs in names.items()}
    settings["feed_forward_length"] = config.hidden_dimension
    settings["vocab_size"] = config.vocab_size
    if architecture == "gpt2":
        settings["attention.layer_norm_epsilon"] = float(config.norm_epsilon)
    else:
        settings |= {
            "attention.head_count_kv": config.kv_heads,
            "attention.layer_norm_rms_epsilon": float(config.norm_epsilon),
            "rope.freq_base": float(config.rotary_base),
            **dict.fromkeys((_KEY_WIDTH, *_OTHER_WIDTHS), config.head_dimension),
        }
    scaling = config.rotary_scaling or {"type": None}
    if scaling["type"] == "linear":
        settings["rope.scaling.type"] = "linear"
        settings["rope.scaling.factor"] = float(scaling["factor"])
    elif scaling["type"] == "llama3":
        length = int(scaling["original_context_length"])
        settings["rope.scaling.original_context_length"] = length
    return {f"{architecture}.{name}": value for name, value in settings.items()}


def find_architecture(config: GPTConfig) -> str:
    """What llama.cpp calls the architecture.

    Raises:
        ValueError: It has none that computes the same; the field is named.
    """
    family = families.find_family(config)
    scaling = config.rotary_scaling or {"type": None}
    is_llama3 = family == "llama" and _LLAMA3.items() <= scaling.items()
    wanted = {}
    if config.sliding_window and config.sliding_window < config.context_length:
        wanted["sliding_window"] = (None,)
    if scaling["type"] == "llama3" and not is_llama3:
        wanted["rotary_scaling"] = (None,)
    if family == "gpt2":
        wanted |= {"activation": ("gelu_tanh",), "use_bias": (True,)}
        wanted["query_key_value_bias"] = (None, True)
    else:
        wanted["use_bias"] = (False,)
    if family == "qwen2":
        wanted["attention_dimension"] = (None, config.embedding_dimension)
    families.check_family(config, family, wanted, "llama.cpp")
    return family.replace("mistral", "llama")


def rotary_divisors(config: GPTConfig) -> np.ndarray | None:
    """What llama.cpp divides each rotary frequency by; `None` where one is for all."""
    if not config.rotary_scaling or config.rotary_scaling["type"] != "llama3":
        return None
    width, base = config.head_dimension, config.rotary_base
    scaled = rotary_frequencies(width, base, config.rotary_scaling)
    return rotary_frequencies(width, base) / scaled


def _read_llama(section, fields, tensors):
    width, num_heads = fields["embedding_dimension"], fields["num_heads"]
    head_width = section.integer(_KEY_WIDTH, width // max(num_heads, 1))
    for name in _OTHER_WIDTHS:
        section.require(name, head_width)
    base = section.number("rope.freq_base", 10000.0)
    window = section.integer("attention.sliding_window", 0)
    is_whole = head_width * num_heads == width
    return {
        "num_kv_heads": section.integer("attention.head_count_kv", num_heads),
        "attention_dimension": None if is_whole else head_width * num_heads,
        "rotary_base": base,
        "rotary_scaling": _read_rotary_scaling(section, tensors, head_width, base),
        "norm_epsilon": section.number("attention.layer_norm_rms_epsilon"),
        "query_key_value_bias": "blk.0.attn_q.bias" in tensors or None,
        "qk_norm": "blk.0.attn_q_norm.weight" in tensors,
        "sliding_window": window if 0 < window < fields["context_length"] else None,
    }


def _read_rotary_scaling(section, tensors, head_width, base):
    section.require("rope.scaling.type", "none", "linear")
    factor = section.number("rope.scale_linear", 1.0)  # its name before 2023-10
    factor = section.number("rope.scaling.factor", factor)
    if section.find("rope.scaling.type") == "none":
        factor = 1.0
    linear = None if factor in (0.0, 1.0) else {"type": "linear", "factor": factor}
    if ROTARY_FREQUENCIES not in tensors:
        return linear
    [divisors] = tensors[ROTARY_FREQUENCIES].read_rows()
    divisors = divisors.astype("float32")
    if np.all(divisors == 1):
        return linear
    scaling = {"type": "llama3", "factor": float(divisors.max()), **_LLAMA3}
    name = "original_context_length"
    scaling[name] = section.integer(f"rope.scaling.{name}", _LLAMA3_CONTEXT_LENGTH)
    found = linear is None and divisors.shape == (head_width // 2,)
    if found and np.all(divisors > 0):
        ours = rotary_frequencies(head_width, base, scaling)
        theirs = rotary_frequencies(head_width, base) / divisors
        found = np.allclose(ours, theirs, rtol=1e-3)  # some files store float16
    if not found:
        raise ValueError(
            f"Unsupported tensor {ROTARY_FREQUENCIES}: its rotary frequencies aren't "
            "scaled in Llama 3.1's way."
        )
    return scaling


def _is_tied(tensors):
    """Whether the output is the embedding; GPT-2's files often hold it twice."""
    output = tensors.get("output.weight")
    return output is None or output.has_same_bytes(tensors["token_embd.weight"])
