"""What `keras-gpt info` and `import` say of a model, in words and rounded figures."""

SHOWN_TOKENS = 8  # special tokens that are named

_SOURCE = {
    "architecture": "family",
    "quantization": "stored as",
    "stored_dtype": "stored as",
}
_TASKS = {
    "complete": "completing prompts",
    "summarize": "summaries",
    "translate": "translations",
    "chat": "conversations",
}
_UNITS = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_NORMALIZATIONS = {"layer_norm": "layer", "rms_norm": "RMS"}
_ACTIVATIONS = {
    "gelu": "GELU",
    "gelu_tanh": "GELU by tanh",
    "relu_squared": "squared ReLU",
    "swiglu": "SwiGLU",
}
_RESULT = {
    "validation_loss": ("validation loss", "{:.3f}"),
    "validation_bits_per_byte": ("bits per byte", "{:.3f}"),
    "best_step": ("reached at step", "{:,}"),
    "last_training_loss": ("training loss at last", "{:.3f}"),
    "last_validation_loss": ("validation loss at last", "{:.3f}"),
    "seconds": ("training took", "{:,.0f} s"),
}


def describe(found, gpt, base=None):
    """Rows about a `LanguageModel` or `Checkpoint` with this `GPT`.

    Args:
        found: The model.
        gpt: Its `GPT`, perhaps without memory.
        base: What its adapter, if it has one, was read on top of.
    """
    from keras_gpt import training

    counts = training.count_trainable(gpt)
    flops = gpt.count_flops_per_token(training=False)
    kept_as = gpt.quantization or gpt.dtype_policy.name
    defaults = found.generation_defaults.items()
    rows = {
        "model": f"a GPT of {_rounded(counts['parameters'])} parameters",
        "adapter": _describe_adapter(gpt, counts["trainable"], base),
        "tuned for": _describe_tasks(getattr(found, "tasks", {})),
        **_describe_architecture(gpt.config),
        "memory": f"{_rounded(counts['weight_bytes'], _BYTES)} as {kept_as}",
        "work": f"{_rounded(flops)} FLOPs for each token, after a full context",
        **_describe_tokenizer(found.tokenizer, found.stop_ids),
        "chats": "yes" if found.chat_template else "no",
        "samples with": ", ".join(f"{name} {value}" for name, value in defaults),
        **{_SOURCE.get(name, name): value for name, value in found.source.items()},
    }
    return {name: value for name, value in rows.items() if value}


def describe_result(result):
    """Rows about what a run reached."""
    return {
        name: text.format(result[field])
        for field, (name, text) in _RESULT.items()
        if field in result
    }


def _describe_architecture(config):
    heads = f"{config.num_heads} attention heads"
    if config.kv_heads < config.num_heads:
        heads += f" ({config.kv_heads} for keys and values)"
    window, dropout_rate = config.sliding_window, config.dropout_rate
    traits = {
        f"{config.position_embedding} positions".replace("none", "no"): True,
        f"{_NORMALIZATIONS[config.normalization]} normalization": True,
        _ACTIVATIONS[config.activation]: True,
        f"each token sees {window or 0:,}": window is not None,
        "normalized queries and keys": config.qk_norm,
        "output tied to the token embedding": config.tie_embeddings,
        f"dropout of {dropout_rate:.0%}": dropout_rate > 0,
        "packed documents kept apart": config.document_separator_id is not None,
    }
    return {
        "layers": f"{config.num_layers}, each with {heads}",
        "width": f"{config.embedding_dimension:,}, inside the feed-forward networks "
        f"{config.hidden_dimension:,}",
        "made with": ", ".join(name for name, is_so in traits.items() if is_so),
        "context": f"{config.context_length:,} tokens",
    }


def _describe_adapter(gpt, size, base):
    settings = gpt.adapters.settings
    if settings is None:
        return None
    return f"LoRA of rank {settings.rank}, {_rounded(size)} of them, on {base}"


def _describe_tokenizer(tokenizer, stop_ids):
    if tokenizer is None:
        return {"tokenizer": "none that keras_gpt reads"}
    special = list(tokenizer.special_tokens)
    shown = ", ".join(special[:SHOWN_TOKENS])
    if len(special) > SHOWN_TOKENS:
        shown += f" and {len(special) - SHOWN_TOKENS:,} more"
    return {
        "tokenizer": f"{type(tokenizer).__name__} of {tokenizer.vocab_size:,} tokens",
        "special tokens": shown or "none",
        "stops at": ", ".join(map(tokenizer.token, stop_ids)) or "nothing",
    }


def _describe_tasks(tasks):
    names = []
    for task, about in tasks.items():
        pairs = [" to ".join(pair) for pair in about.get("languages", ())]
        name = _TASKS.get(task, task)
        names.append(f"{name} ({', '.join(pairs)})" if pairs else name)
    return ", ".join(names)


def _rounded(number, units=_UNITS):
    """A count or a size, such as `135 million`."""
    for size, name in units:
        if number >= size:
            return f"{float(f'{number / size:.3g}'):g} {name}"
    return f"{number:,}"
