"""Models of KerasHub, in memory or from its presets."""

import math
import re
from typing import Any

from keras import ops

from keras_gpt.checkpoints.checkpoint import Checkpoint
from keras_gpt.checkpoints.families import FAMILIES
from keras_gpt.checkpoints.gguf import tokenizer as gguf_tokenizer
from keras_gpt.checkpoints.names import KERAS_HUB_GPT2, KERAS_HUB_LLAMA
from keras_gpt.config import GPTConfig
from keras_gpt.installed import require
from keras_gpt.quiet import quiet_tensorflow
from keras_gpt.tokenizers import Tokenizer

# The class of the backbone, and the name of its mathematics
_FAMILIES = {
    "GPT2Backbone": "gpt2",
    "LlamaBackbone": "llama",  # Llama 3's too
    "MistralBackbone": "mistral",
    "QwenBackbone": "qwen2",
    "Qwen3Backbone": "qwen3",
}
_PIECES = "pieces"  # of SentencePiece, in place of words
# How the tokenizers cut text into words, as GGUF calls it
_RULES = {
    "GPT2Tokenizer": "gpt-2",
    "Llama3Tokenizer": "llama-bpe",
    "QwenTokenizer": "qwen2",
    "Qwen3Tokenizer": "qwen2",
    "LlamaTokenizer": _PIECES,
    "MistralTokenizer": _PIECES,
}
_END_TOKENS = ("end_token_id", "end_token2_id")
_DEFAULT_CONTEXT_LENGTH = 1024  # of KerasHub's preprocessors


def read_keras_hub(source: Any) -> Checkpoint:
    """Look at a model of KerasHub.

    The model may have seen longer texts than its preprocessor's `sequence_length`,
    which becomes the `context_length` where positions are rotary.

    Args:
        source: A `CausalLM` or `Backbone` of GPT-2, Llama, Mistral, Qwen 2 or Qwen 3,
            or the name of a preset. A backbone has no tokenizer.

    Raises:
        FileNotFoundError: There is no such preset, or no connection.
        ValueError: It is another kind of model.
    """
    name = type(source).__name__
    if isinstance(source, str):
        name, source = source, _download(source)
    backbone = getattr(source, "backbone", source)
    preprocessor = getattr(source, "preprocessor", None)
    family = _find(_FAMILIES, backbone)
    if family is None:
        raise ValueError(
            "`source` must be a KerasHub model of GPT-2, Llama, Mistral, Qwen 2 or "
            f"Qwen 3. Received: {type(source).__name__}."
        )
    names = KERAS_HUB_GPT2 if family == "gpt2" else KERAS_HUB_LLAMA
    weights = {weight.path: weight for weight in backbone.weights}
    shapes = {path: _flat_shape(path, weight.shape) for path, weight in weights.items()}

    def read_rows(path):
        return [ops.convert_to_numpy(weights[path]).reshape(shapes[path])]

    tokenizer = getattr(preprocessor, "tokenizer", None)
    stop_ids = [getattr(tokenizer, name, None) for name in _END_TOKENS]
    return Checkpoint(
        config=_read_config(family, names, backbone, preprocessor),
        names=names,
        shapes=shapes,
        read_rows=read_rows,
        tokenizer=None if tokenizer is None else _read_tokenizer(preprocessor),
        stop_ids=tuple(dict.fromkeys(i for i in stop_ids if i is not None)),
        source={"format": "KerasHub", "name": name, "architecture": family},
    )


def _download(preset):
    require("keras-hub", f"keras_hub://{preset}", "keras_hub")
    with quiet_tensorflow():
        import keras_hub

    try:
        return keras_hub.models.CausalLM.from_preset(preset)
    # its downloaders, Kaggle's and Hugging Face's, raise their own kinds
    except Exception as error:
        reason = re.split(r"[.:]\s|\n", str(error))[0]
        raise FileNotFoundError(
            f"keras_hub://{preset} can't be loaded ({reason}). Check the name and "
            "the connection."
        ) from error


def _find(table, thing):
    """The entry of a KerasHub class, or of the one that it is derived from."""
    for base in type(thing).__mro__:
        if base.__name__ in table and base.__module__.startswith("keras_hub."):
            return table[base.__name__]
    return None


def _flat_shape(path, shape):
    """The shape of a matrix or vector, without an axis for the heads."""
    if path.endswith("attention_output/kernel"):
        return (math.prod(shape[:-1]), shape[-1])
    if path.endswith("/kernel"):
        return (shape[0], math.prod(shape[1:]))
    return (math.prod(shape),) if path.endswith("/bias") else tuple(shape)


def _read_config(family, names, backbone, preprocessor):
    settings = names.settings.items()
    fields = {ours: getattr(backbone, theirs) for ours, theirs in settings}
    fields |= FAMILIES[family]
    fields["tie_embeddings"] = backbone.token_embedding.tie_weights
    if family == "gpt2":
        epsilon = backbone.layer_norm.epsilon
        return GPTConfig(**fields, activation="gelu_tanh", norm_epsilon=epsilon)
    length = getattr(preprocessor, "sequence_length", None) or _DEFAULT_CONTEXT_LENGTH
    width = getattr(backbone, "head_dim", None)
    width = width and width * backbone.num_query_heads
    return GPTConfig(
        **fields,
        context_length=length,
        attention_dimension=None if width == backbone.hidden_dim else width,
        rotary_scaling=_read_rotary_scaling(backbone),
        sliding_window=_read_sliding_window(family, backbone, length),
    )


def _read_rotary_scaling(backbone):
    # KerasHub 0.32 has Llama's factor, but doesn't use it
    linear = getattr(backbone, "rope_position_scaling_factor", None)
    linear = backbone.rope_scaling_factor if linear is None else linear
    factor = getattr(backbone, "rope_frequency_adjustment_factor", None)
    if factor is None:
        return None if linear == 1 else {"type": "linear", "factor": linear}
    if linear != 1:
        raise ValueError(
            "Rotary positions can be scaled in one way only. Received: rope_position_"
            f"scaling_factor={linear}, rope_frequency_adjustment_factor={factor}."
        )
    return {
        "type": "llama3",
        "factor": factor,
        "low_frequency_factor": backbone.rope_low_freq_factor,
        "high_frequency_factor": backbone.rope_high_freq_factor,
        "original_context_length": backbone.rope_pretraining_sequence_length,
    }


def _read_sliding_window(family, backbone, context_length):
    # KerasHub 0.32 has Qwen's windows, but doesn't use them on JAX and PyTorch
    window = None
    if family == "mistral":
        window = backbone.sliding_window
    elif family == "qwen3" or getattr(backbone, "use_sliding_window_attention", False):
        window = backbone.sliding_window_size
    return window if window and window < context_length else None


def _read_tokenizer(preprocessor) -> Tokenizer:
    """Describe the tokenizer as a GGUF file does, from which one can be made."""
    tokenizer = preprocessor.tokenizer
    rule = _find(_RULES, tokenizer)
    if rule is None:
        raise ValueError(
            "The model's tokenizer must be of GPT-2, Llama, Mistral, Qwen 2 or Qwen 3. "
            f"Received: {type(tokenizer).__name__}."
        )
    describe = _describe_pieces if rule == _PIECES else _describe_merges
    settings = {
        "tokenizer.ggml.bos_token_id": getattr(tokenizer, "start_token_id", None),
        "tokenizer.ggml.add_bos_token": preprocessor.add_start_token,
        "tokenizer.ggml.pre": rule,
        **describe(tokenizer),
    }
    return gguf_tokenizer.tokenizer_from_gguf(settings)


def _describe_merges(tokenizer):
    vocabulary = tokenizer.vocabulary
    size = max(vocabulary.values()) + 1
    tokens, kinds = (
        [f"[UNUSED{i}]" for i in range(size)],
        [gguf_tokenizer.UNUSED] * size,
    )
    for token, i in vocabulary.items():
        tokens[i], kinds[i] = token, gguf_tokenizer.NORMAL
    for token in tokenizer.special_tokens:
        kinds[vocabulary[token]] = gguf_tokenizer.CONTROL
    merges = [merge for merge in tokenizer.merges if "#version:" not in merge]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
    }


def _describe_pieces(tokenizer):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = ModelProto.FromString(tokenizer.proto)
    # whose kinds of tokens have GGUF's numbers
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.piece for piece in model.pieces],
        "tokenizer.ggml.token_type": [piece.type for piece in model.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in model.pieces],
        "tokenizer.ggml.unknown_token_id": model.trainer_spec.unk_id,
    }
