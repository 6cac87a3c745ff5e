"""From the settings in a GGUF file to a `GPTConfig`, or to a refusal."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_gpt.checkpoints.gguf_file import TensorInfo
from keras_gpt.checkpoints.names import GGUF_GPT2, GGUF_LLAMA, Names
from keras_gpt.config import GPTConfig, suggest
from keras_gpt.layers.rotary import rotary_frequencies

# Mistral's models are "llama" too
NAMES = {
    "gpt2": GGUF_GPT2,
    "llama": GGUF_LLAMA,
    "qwen2": GGUF_LLAMA,
    "qwen3": GGUF_LLAMA,
}
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
LLAMA3 = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0}
LLAMA3_CONTEXT_LENGTH = 8192


def read_config(
    settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> tuple[GPTConfig, Names]:
    """Translate the settings of a model.

    Args:
        settings: The settings by key.
        tensors: The tensors by name.

    Returns:
        The architecture, and what the format calls its weights.

    Raises:
        ValueError: The architecture or a setting isn't supported, a setting is missing
            or doesn't fit the tensors.
    """
    architecture = settings.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in NAMES:
        raise ValueError(
            "Unsupported architecture. "
            f"{suggest('general.architecture', architecture, NAMES)}"
        )
    section = _Section(settings, architecture)
    for name, values in _NEUTRAL.items():
        section.require(name, *values)
    if "token_embd.weight" not in tensors:
        raise ValueError("It lacks the tensor token_embd.weight. Download it again.")
    fields = {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "context_length": section.integer("context_length"),
        "embedding_dimension": section.integer("embedding_length"),
        "num_layers": section.integer("block_count"),
        "num_heads": section.integer("attention.head_count"),
        "feed_forward_dimension": section.integer("feed_forward_length"),
        "tie_embeddings": _is_tied(tensors),
    }
    if architecture == "gpt2":
        fields |= {
            "norm_epsilon": section.number("attention.layer_norm_epsilon"),
            "activation": "gelu_tanh",
        }
    else:
        fields |= _read_llama(section, fields, tensors)
    config = GPTConfig(**fields)
    _check_tensors(config, tensors)
    return config, NAMES[architecture]


def _read_llama(section, fields, tensors):
    width, num_heads = fields["embedding_dimension"], fields["num_heads"]
    head_dimension = section.integer("attention.key_length", width // max(num_heads, 1))
    for name in ("attention.value_length", "rope.dimension_count"):
        section.require(name, head_dimension)
    attention_dimension = head_dimension * num_heads
    base = section.number("rope.freq_base", 10000.0)
    window = section.integer("attention.sliding_window", 0)
    return {
        "num_kv_heads": section.integer("attention.head_count_kv", num_heads),
        "attention_dimension": (
            None if attention_dimension == width else attention_dimension
        ),
        "position_embedding": "rotary",
        "rotary_base": base,
        "rotary_scaling": _rotary_scaling(section, tensors, head_dimension, base),
        "normalization": "rms_norm",
        "norm_epsilon": section.number("attention.layer_norm_rms_epsilon"),
        "activation": "swiglu",
        "use_bias": False,
        "query_key_value_bias": "blk.0.attn_q.bias" in tensors or None,
        "qk_norm": "blk.0.attn_q_norm.weight" in tensors,
        "sliding_window": window if 0 < window < fields["context_length"] else None,
    }


def _rotary_scaling(section, tensors, head_dimension, base):
    kind = section.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        section.refuse("rope.scaling.type", kind, "'none' or 'linear'")
    factor = section.number("rope.scale_linear", 1.0)  # its name before 2023-10
    factor = section.number("rope.scaling.factor", factor) if kind == "linear" else 1.0
    linear = None if factor in (0.0, 1.0) else {"type": "linear", "factor": factor}
    if "rope_freqs.weight" not in tensors:
        return linear
    divisors = tensors["rope_freqs.weight"].read().astype("float32")
    if np.all(divisors == 1):
        return linear
    original = section.integer(
        "rope.scaling.original_context_length", LLAMA3_CONTEXT_LENGTH
    )
    scaling = {
        "type": "llama3",
        "factor": float(divisors.max()),
        **LLAMA3,
        "original_context_length": original,
    }
    found = linear is None and divisors.shape == (head_dimension // 2,)
    if found and np.all(divisors > 0):
        ours = rotary_frequencies(head_dimension, base, scaling)
        theirs = rotary_frequencies(head_dimension, base) / divisors
        found = np.allclose(ours, theirs, rtol=1e-3)  # some files store float16
    if not found:
        raise ValueError(
            "The tensor rope_freqs.weight holds rotary frequencies that aren't scaled "
            "in Llama 3.1's way, which keras_gpt doesn't support."
        )
    return scaling


def _is_tied(tensors):
    """Whether the output is the embedding; GPT-2's files often hold it twice."""
    output = tensors.get("output.weight")
    return output is None or output.has_same_bytes(tensors["token_embd.weight"])


def _check_tensors(config, tensors):
    """Raise unless the file has all blocks, and the first has the config's shapes.

    Numbers of a damaged file could otherwise make a model that no memory can hold.
    """
    blocks = {m[1] for m in map(re.compile(r"blk\.(\d+)\.").match, tensors) if m}
    if len(blocks) != config.num_layers:
        raise ValueError(
            f"It has the tensors of {len(blocks)} blocks, but block_count is "
            f"{config.num_layers}. Download it again."
        )
    embedding, hidden = config.embedding_dimension, config.feed_forward_dimension
    heads = config.num_heads * config.head_dimension
    kv_heads = (config.num_kv_heads or config.num_heads) * config.head_dimension
    shapes = {
        "token_embd.weight": (config.vocab_size, embedding),
        "output.weight": (config.vocab_size, embedding),
        "position_embd.weight": (config.context_length, embedding),
        "blk.0.attn_qkv.weight": (heads + 2 * kv_heads, embedding),
        "blk.0.attn_q.weight": (heads, embedding),
        "blk.0.attn_k.weight": (kv_heads, embedding),
        "blk.0.attn_v.weight": (kv_heads, embedding),
        "blk.0.attn_output.weight": (embedding, heads),
        "blk.0.ffn_up.weight": (hidden, embedding),
        "blk.0.ffn_down.weight": (embedding, hidden),
    }
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            raise ValueError(
                f"{name} has the shape {tensors[name].shape}; its settings want "
                f"{shape}. Download it again."
            )


class _Section:
    """The settings of one architecture, checked as they are asked for."""

    def __init__(self, settings, architecture):
        self._settings = settings
        self._prefix = f"{architecture}."

    def integer(self, name, default=None):
        """A whole number, or one for each block if all are the same."""
        value = self._get(name, default)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(name, value, "an integer, the same in all blocks")
        return value

    def number(self, name, default=None):
        value = self._get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.refuse(name, value, "a number")
        return float(value)

    def text(self, name, default=None):
        return self._get(name, default)

    def require(self, name, *values):
        """Refuse the setting unless it is absent or one of the values."""
        value = self._settings.get(self._prefix + name)
        if value is not None and value not in values:
            self.refuse(name, value, " or ".join(map(repr, values)) or "absent")

    def refuse(self, name, value, wanted):
        raise ValueError(
            f"Unsupported setting. Received: {self._prefix}{name}={str(value)[:80]}. "
            f"It must be {wanted}."
        )

    def _get(self, name, default):
        value = self._settings.get(self._prefix + name, default)
        if value is None:
            raise ValueError(
                f"It lacks the setting {self._prefix}{name}. Download it again."
            )
        return value
