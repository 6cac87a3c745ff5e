"""From a `config.json` of Hugging Face to a `GPTConfig`, or to a refusal."""

from typing import Any

from keras_gpt.checkpoints.names import (
    HUGGING_FACE_GPT2,
    HUGGING_FACE_LLAMA,
    Names,
)
from keras_gpt.config import GPTConfig, suggest

# Theirs: ours, for the settings that are the same thing
GPT2_FIELDS = {
    "vocab_size": "vocab_size",
    "n_positions": "context_length",
    "n_embd": "embedding_dimension",
    "n_layer": "num_layers",
    "n_head": "num_heads",
}
LLAMA_FIELDS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_dimension",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "feed_forward_dimension",
}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_NAMES = {
    "gpt2": HUGGING_FACE_GPT2,
    "llama": HUGGING_FACE_LLAMA,
    "mistral": HUGGING_FACE_LLAMA,
    "qwen2": HUGGING_FACE_LLAMA,
    "qwen3": HUGGING_FACE_LLAMA,
}
_FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window")
# Of generation, by the names that are ours too
CONTROLS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
ROTARY_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_context_length",
}


def read_config(settings: dict[str, Any]) -> tuple[GPTConfig, Names]:
    """Translate the settings of a model.

    Args:
        settings: The content of `config.json`.

    Returns:
        The architecture, and what the family calls its weights.

    Raises:
        ValueError: The family or a setting isn't supported, or one is missing.
    """
    family = settings.get("model_type")
    if not isinstance(family, str) or family not in _NAMES:
        raise ValueError(
            f"Unsupported architecture. {suggest('model_type', family, _NAMES)}"
        )
    if settings.get("quantization_config"):
        raise ValueError(
            "Quantized safetensors aren't supported. Received: quantization_config="
            f"{settings['quantization_config']!r:.80}. Load the original weights, or a "
            "GGUF file."
        )
    for name in _FLAGS:
        if not isinstance(settings.get(name) or False, bool):
            _refuse(name, settings[name], "it must be true or false")
    read = _read_gpt2 if family == "gpt2" else _read_llama
    try:
        return GPTConfig(**read(settings, family)), _NAMES[family]
    except KeyError as error:
        raise ValueError(
            f"config.json of a {family!r} model lacks {error}. Download it again."
        ) from error
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"config.json of a {family!r} model has a value of a wrong type ({error}). "
            "Download it again."
        ) from error


def _read_gpt2(settings, family):
    del family
    for name, value in {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }.items():
        _require(settings, name, value)
    fields = {ours: settings[theirs] for theirs, ours in GPT2_FIELDS.items()}
    activation = settings.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        _refuse("activation_function", activation)
    rates = {
        settings.get(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    }
    return {
        **fields,
        "feed_forward_dimension": settings.get("n_inner"),
        "activation": _ACTIVATIONS[activation],
        "norm_epsilon": settings.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": settings.get("tie_word_embeddings", True),
        # ours is one rate; where theirs differ the model is read to be used
        "dropout_rate": rates.pop() if len(rates) == 1 else 0.0,
    }


def _read_llama(settings, family):
    _require(settings, "hidden_act", "silu")
    _require(settings, "partial_rotary_factor", 1.0)
    fields = {ours: settings[theirs] for theirs, ours in LLAMA_FIELDS.items()}
    # the defaults of Transformers' configuration classes
    num_kv_heads = settings.get("num_key_value_heads") or fields["num_heads"]
    width = settings.get("head_dim") or (128 if family == "qwen3" else None)
    attention_dimension = width * fields["num_heads"] if width else None
    if attention_dimension == fields["embedding_dimension"]:
        attention_dimension = None
    has_bias = family in ("llama", "qwen3") and bool(settings.get("attention_bias"))
    if has_bias != bool(settings.get("mlp_bias")):
        name = "attention_bias" if has_bias else "mlp_bias"
        _refuse(name, True, "attention_bias and mlp_bias must be alike")
    rotary_base, rotary_scaling = _read_rotary(settings)
    return {
        **fields,
        "num_kv_heads": num_kv_heads,
        "attention_dimension": attention_dimension,
        "position_embedding": "rotary",
        "rotary_base": rotary_base,
        "rotary_scaling": rotary_scaling,
        "normalization": "rms_norm",
        "norm_epsilon": settings.get("rms_norm_eps", 1e-6),
        "activation": "swiglu",
        "use_bias": has_bias,
        "query_key_value_bias": True if family == "qwen2" else None,
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        "qk_norm": family == "qwen3",
        "sliding_window": _read_sliding_window(settings, family),
    }


def _read_rotary(settings):
    """The base and our `rotary_scaling`, from the old and the new way to write them."""
    rotary = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    base = rotary.get("rope_theta", settings.get("rope_theta", 10000.0))
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, {"type": "linear", "factor": rotary["factor"]}
    if kind == "llama3":
        scaling = {ours: rotary[theirs] for theirs, ours in ROTARY_SCALING.items()}
        return base, {"type": "llama3", **scaling}
    return _refuse("rope_type", kind, "only default, linear and llama3 are known")


def _read_sliding_window(settings, family):
    window = settings.get("sliding_window")
    if window is None or family == "llama":
        return None
    if family == "mistral":
        return window
    if not settings.get("use_sliding_window", False):
        return None
    layers = settings["num_hidden_layers"]
    kinds = settings.get("layer_types") or [
        "full_attention"
        if i < settings.get("max_window_layers", 28)
        else "sliding_attention"
        for i in range(layers)
    ]
    if set(kinds) == {"full_attention"}:
        return None
    if set(kinds) == {"sliding_attention"}:
        return window
    return _refuse("use_sliding_window", True, "some layers have a window, others none")


def _require(settings, name, value):
    if settings.get(name, value) != value:
        _refuse(name, settings[name], f"only {value!r} is supported")


def _refuse(name, value, reason="not supported"):
    raise ValueError(
        f"The model has a setting that keras_gpt doesn't support. Received: "
        f"{name}={value!r} ({reason})."
    )
