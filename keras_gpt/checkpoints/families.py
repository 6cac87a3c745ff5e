"""The families of models, by the names that Transformers has for them."""

from typing import Any

from keras_gpt.config import GPTConfig

# Fields of each `GPTConfig` in the family; all but GPT-2 are made like Llama
GPT2 = {"position_embedding": "learned", "normalization": "layer_norm"}
LLAMA = {
    "position_embedding": "rotary",
    "normalization": "rms_norm",
    "activation": "swiglu",
    "use_bias": False,
}
FAMILIES = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": {**LLAMA, "query_key_value_bias": True},
    "qwen3": {**LLAMA, "qk_norm": True},
    "seed_oss": {**LLAMA, "query_key_value_bias": True},
}
_NONE = (None, False)


def find_family(config: GPTConfig) -> str:
    """Name the family whose mathematics a model may have: `check_family` says."""
    if config.normalization == "layer_norm":
        return "gpt2"
    if config.qk_norm:
        return "qwen3"
    if config.has_query_key_value_bias and not config.use_bias:
        return "qwen2"
    return "llama" if config.sliding_window is None else "mistral"


def check_family(
    config: GPTConfig, family: str, more: dict[str, tuple[Any, ...]], program: str
) -> None:
    """Raise unless a model has the mathematics of a family.

    Args:
        config: Of the model.
        family: From `find_family`.
        more: What a program wants beside: for a field the values that will do.
        program: Its name, for the message.

    Raises:
        ValueError: The program has no such model; the field is named.
    """
    if family == "gpt2":
        wanted = {
            "position_embedding": ("learned",),
            "activation": ("gelu", "gelu_tanh"),
            "qk_norm": _NONE,
            "sliding_window": _NONE,
            "num_kv_heads": (None, config.num_heads),
            "attention_dimension": (None, config.embedding_dimension),
        }
    else:
        wanted = {"position_embedding": ("rotary",), "activation": ("swiglu",)}
        if family == "llama":
            wanted["query_key_value_bias"] = (None, config.use_bias)
        else:
            wanted["use_bias"] = _NONE
        if family == "qwen3":
            wanted["query_key_value_bias"] = _NONE
    for field, values in (wanted | more).items():
        if getattr(config, field) not in values:
            raise ValueError(
                f"{program} wants of a {family!r} model {field}={values[-1]!r}. "
                f"Received: {field}={getattr(config, field)!r}. Use `save` or `export`."
            )
