"""Between a `config.json` of Hugging Face and a `GPTConfig`."""

import dataclasses
from typing import Any

from keras_gpt.checkpoints.families import FAMILIES
from keras_gpt.checkpoints.names import HUGGING_FACE_GPT2, HUGGING_FACE_LLAMA, Names
from keras_gpt.checkpoints.settings import Settings
from keras_gpt.config import ROTARY_SCALINGS, GPTConfig, check_choice

# What Transformers takes for settings that are left out
_DEFAULTS = {
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-6,
}
# What would change the outputs, and the value at which it doesn't
_GPT2_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
_LLAMA_FIXED = {"hidden_act": "silu", "partial_rotary_factor": 1.0}
# The first that is ours is written
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_DROPOUT_RATES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window")
_ROTARY_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_context_length",
}


def names_of(family: str) -> Names:
    """What a family calls its weights and settings."""
    return HUGGING_FACE_GPT2 if family == "gpt2" else HUGGING_FACE_LLAMA


def read_config(settings: dict[str, Any]) -> GPTConfig:
    """Translate the settings of a model.

    Args:
        settings: The content of `config.json`.

    Raises:
        ValueError: The family or a setting isn't supported, or one is missing.
    """
    family = settings.get("model_type")
    check_choice("model_type", family, tuple(FAMILIES))
    is_gpt2 = family == "gpt2"
    checked = Settings(settings)
    if settings.get("quantization_config"):
        checked.refuse("quantization_config", "absent: load the original or a GGUF")
    for name in _FLAGS:
        if not isinstance(settings.get(name) or False, bool):
            checked.refuse(name, "true or false")
    for name, value in (_GPT2_FIXED if is_gpt2 else _LLAMA_FIXED).items():
        checked.require(name, value)
    given = {**_DEFAULTS, "tie_word_embeddings": is_gpt2, **settings}
    try:
        names = names_of(family).settings
        fields = {ours: given[theirs] for ours, theirs in names.items()}
        if is_gpt2:
            fields |= _read_gpt2(checked)
        else:
            fields |= _read_llama(checked, fields, family)
        return GPTConfig(**FAMILIES[family] | fields)
    except KeyError as error:
        raise ValueError(
            f"config.json of a {family!r} model lacks {error}. Download it again."
        ) from error
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"config.json of a {family!r} model has a value of a wrong type ({error}). "
            "Download it again."
        ) from error


def write_config(config: GPTConfig, family: str) -> dict[str, Any]:
    """Settings from which `read_config` and Transformers make the architecture."""
    if family == "gpt2":
        activation = next(t for t, o in _ACTIVATIONS.items() if o == config.activation)
        more = {"activation_function": activation}
        more |= dict.fromkeys(_DROPOUT_RATES, config.dropout_rate)
    else:
        sizes = {
            "num_kv_heads": config.kv_heads,
            "feed_forward_dimension": config.hidden_dimension,
        }
        config = dataclasses.replace(config, **sizes)
        more = _write_llama(config)
    names = names_of(family).settings
    fields = {theirs: getattr(config, ours) for ours, theirs in names.items()}
    return {"model_type": family, **fields, **more}


def _read_gpt2(settings):
    settings.require("activation_function", *_ACTIVATIONS)
    activation = settings.find("activation_function", "gelu_new")
    rates = {settings.find(name, 0.1) for name in _DROPOUT_RATES}
    return {
        "activation": _ACTIVATIONS[activation],
        # ours is one rate; where theirs differ the model is read to be used
        "dropout_rate": rates.pop() if len(rates) == 1 else 0.0,
    }


def _read_llama(settings, fields, family):
    # the defaults of Transformers' configuration classes
    width = settings.find("head_dim") or (128 if family == "qwen3" else None)
    width = width and width * fields["num_heads"]
    has_bias = family in ("llama", "qwen3") and bool(settings.find("attention_bias"))
    if has_bias != bool(settings.find("mlp_bias")):
        name = "attention_bias" if has_bias else "mlp_bias"
        settings.refuse(name, "like the other of attention_bias and mlp_bias")
    is_whole = width == fields["embedding_dimension"]
    return {
        "num_kv_heads": fields["num_kv_heads"] or fields["num_heads"],
        "attention_dimension": None if is_whole else width,
        **_read_rotary(settings),
        "use_bias": has_bias,
        "sliding_window": _read_sliding_window(settings, family, fields["num_layers"]),
    }


def _write_llama(config):
    settings = {
        "head_dim": config.head_dimension,
        "hidden_act": "silu",
        "attention_bias": config.use_bias,
        "mlp_bias": config.use_bias,
        **_write_rotary(config),
        # of Mistral; then also what Qwen needs to use it in every layer
        "sliding_window": config.sliding_window,
    }
    if config.sliding_window is not None:
        settings |= {"use_sliding_window": True, "max_window_layers": 0}
    return settings


def _read_rotary(settings):
    """The base and our `rotary_scaling`, from the old and the new way to write them."""
    rotary = settings.find("rope_parameters") or settings.find("rope_scaling") or {}
    base = rotary.get("rope_theta", settings.find("rope_theta", 10000.0))
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind == "default":
        return {"rotary_base": base, "rotary_scaling": None}
    Settings({"rope_type": kind}).require("rope_type", *ROTARY_SCALINGS, "default")
    scaling = {
        ours: rotary[theirs]
        for theirs, ours in _ROTARY_SCALING.items()
        if ours in ROTARY_SCALINGS[kind]
    }
    return {"rotary_base": base, "rotary_scaling": {"type": kind, **scaling}}


def _write_rotary(config):
    """In the new way, and the old one of Transformers 4 and llama.cpp."""
    base, scaling = {"rope_theta": config.rotary_base}, config.rotary_scaling
    if scaling is None:
        return {**base, "rope_parameters": {**base, "rope_type": "default"}}
    rotary = {
        theirs: scaling[ours]
        for theirs, ours in _ROTARY_SCALING.items()
        if ours in scaling
    }
    rotary["rope_type"] = scaling["type"]
    return {**base, "rope_parameters": {**base, **rotary}, "rope_scaling": rotary}


def _read_sliding_window(settings, family, num_layers):
    window = settings.find("sliding_window")
    if family == "llama" or window is None:
        return None
    if family == "mistral":
        return window
    if not settings.find("use_sliding_window", False):
        return None
    first = settings.find("max_window_layers", 28)
    counts = {"full_attention": first, "sliding_attention": num_layers - first}
    named = settings.find("layer_types") or [k for k, n in counts.items() if n > 0]
    kinds = set(named)
    if kinds == {"full_attention"}:
        return None
    if kinds != {"sliding_attention"}:
        settings.refuse("use_sliding_window", "the same for all layers")
    return window
