"""Between a `config.json` of Hugging Face and a `GPTConfig`."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_gpt.checkpoints import families
from keras_gpt.checkpoints.names import HUGGING_FACE_GPT2, HUGGING_FACE_LLAMA, Names
from keras_gpt.config import ROTARY_SCALINGS, GPTConfig, suggest


@dataclass(frozen=True)
class _Kind:
    """How a kind of `config.json` says what a `GPTConfig` says.

    Args:
        names: What it calls the weights.
        ours: What is the same in each `GPTConfig`.
        fields: `{theirs: ours}`, the settings that are the same thing.
        defaults: What Transformers takes for those that are left out.
        fixed: What would change the outputs, and the value at which it doesn't.
    """

    names: Names
    ours: dict[str, Any]
    fields: dict[str, str]
    defaults: dict[str, Any]
    fixed: dict[str, Any]


_GPT2 = _Kind(
    names=HUGGING_FACE_GPT2,
    ours=families.GPT2,
    fields={
        "vocab_size": "vocab_size",
        "n_positions": "context_length",
        "n_embd": "embedding_dimension",
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_inner": "feed_forward_dimension",
        "layer_norm_epsilon": "norm_epsilon",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={"n_inner": None, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
)
_LLAMA = _Kind(
    names=HUGGING_FACE_LLAMA,
    ours=families.LLAMA,
    fields={
        "vocab_size": "vocab_size",
        "max_position_embeddings": "context_length",
        "hidden_size": "embedding_dimension",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "intermediate_size": "feed_forward_dimension",
        "rms_norm_eps": "norm_epsilon",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    fixed={"hidden_act": "silu", "partial_rotary_factor": 1.0},
)
_KINDS = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
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
    """What a family calls its weights."""
    return _KINDS[family].names


def read_config(settings: dict[str, Any]) -> GPTConfig:
    """Translate the settings of a model.

    Args:
        settings: The content of `config.json`.

    Raises:
        ValueError: The family or a setting isn't supported, or one is missing.
    """
    family = settings.get("model_type")
    if not isinstance(family, str) or family not in _KINDS:
        raise ValueError(
            f"Unsupported architecture. {suggest('model_type', family, _KINDS)}"
        )
    kind = _KINDS[family]
    if settings.get("quantization_config"):
        _refuse(settings, "quantization_config", "load the original weights, or GGUF")
    for name in _FLAGS:
        if not isinstance(settings.get(name) or False, bool):
            _refuse(settings, name, "it must be true or false")
    for name, value in kind.fixed.items():
        if settings.get(name, value) != value:
            _refuse(settings, name, f"only {value!r} is supported")
    try:
        given = kind.defaults | settings
        fields = {ours: given[theirs] for theirs, ours in kind.fields.items()}
        if kind is _GPT2:
            fields |= _read_gpt2(settings)
        else:
            fields |= _read_llama(settings, fields, family)
        return GPTConfig(**kind.ours, **fields)
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
    kind = _KINDS[family]
    if kind is _GPT2:
        activation = next(t for t, o in _ACTIVATIONS.items() if o == config.activation)
        more = {"activation_function": activation}
        more |= dict.fromkeys(_DROPOUT_RATES, config.dropout_rate)
    else:
        config = dataclasses.replace(
            config,
            num_kv_heads=config.kv_heads,
            feed_forward_dimension=config.hidden_dimension,
        )
        more = _write_llama(config)
    fields = {theirs: getattr(config, ours) for theirs, ours in kind.fields.items()}
    return {"model_type": family, **fields, **more}


def _read_gpt2(settings):
    activation = settings.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        _refuse(settings, "activation_function", f"only {', '.join(_ACTIVATIONS)}")
    rates = {settings.get(name, 0.1) for name in _DROPOUT_RATES}
    return {
        "activation": _ACTIVATIONS[activation],
        # ours is one rate; where theirs differ the model is read to be used
        "dropout_rate": rates.pop() if len(rates) == 1 else 0.0,
    }


def _read_llama(settings, fields, family):
    # the defaults of Transformers' configuration classes
    width = settings.get("head_dim") or (128 if family == "qwen3" else None)
    width = width and width * fields["num_heads"]
    has_bias = family in ("llama", "qwen3") and bool(settings.get("attention_bias"))
    if has_bias != bool(settings.get("mlp_bias")):
        name = "attention_bias" if has_bias else "mlp_bias"
        _refuse(settings, name, "attention_bias and mlp_bias must be alike")
    return {
        "num_kv_heads": fields["num_kv_heads"] or fields["num_heads"],
        "attention_dimension": None
        if width == fields["embedding_dimension"]
        else width,
        **_read_rotary(settings),
        "use_bias": has_bias,
        "query_key_value_bias": True if family == "qwen2" else None,
        "qk_norm": family == "qwen3",
        "sliding_window": _read_sliding_window(settings, family),
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
    rotary = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    base = rotary.get("rope_theta", settings.get("rope_theta", 10000.0))
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind == "default":
        return {"rotary_base": base, "rotary_scaling": None}
    if kind not in ROTARY_SCALINGS:
        _refuse({"rope_type": kind}, "rope_type", "only default, linear and llama3")
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


def _read_sliding_window(settings, family):
    window = settings.get("sliding_window")
    if family == "llama" or window is None:
        return None
    if family == "mistral":
        return window
    if not settings.get("use_sliding_window", False):
        return None
    first = settings.get("max_window_layers", 28)
    kinds = set(
        settings.get("layer_types")
        or [
            "full_attention" if i < first else "sliding_attention"
            for i in range(settings["num_hidden_layers"])
        ]
    )
    if kinds == {"full_attention"}:
        return None
    if kinds != {"sliding_attention"}:
        reason = "some layers have a window, others none"
        _refuse(settings, "use_sliding_window", reason)
    return window


def _refuse(settings, name, reason):
    raise ValueError(
        f"The model has a setting that keras_gpt doesn't support. Received: "
        f"{name}={settings[name]!r:.80} ({reason})."
    )
