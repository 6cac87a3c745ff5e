"""Requests that TensorFlow Serving answers before it calls a model available.

The first run of each signature is slow: TensorFlow then optimizes its graph.

References:
    - [SavedModel warm-up](
      https://www.tensorflow.org/tfx/serving/saved_model_warmup)
"""

import itertools
from pathlib import Path
from typing import Any

import tensorflow as tf

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
_NEW_TOKENS = 2  # prefill and a step of the loop


def write_warmup(tokenizer, settings, folder: str | Path, model_name: str) -> None:
    """Write the requests into a SavedModel.

    Args:
        tokenizer: The model's.
        settings: The `Settings` that it was exported with.
        folder: The SavedModel's folder.
        model_name: Name of the model on the server.
    """
    from tensorflow_serving.apis import prediction_log_pb2

    path = Path(folder) / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        rows = sample_rows(tokenizer, settings, _NEW_TOKENS)
        for signature, row in rows.items():
            is_batched = "temperature" in row
            for size in settings.batch_sizes if is_batched else [1]:
                log = prediction_log_pb2.PredictionLog()
                request = log.predict_log.request
                request.model_spec.name = model_name
                request.model_spec.signature_name = signature
                for name, value in row.items():
                    proto = tf.make_tensor_proto([value] * size)
                    request.inputs[name].CopyFrom(proto)
                writer.write(log.SerializeToString())


def sample_rows(tokenizer, settings, max_new_tokens: int) -> dict[str, dict[str, Any]]:
    """A row to ask each signature for, its inputs by name.

    Args:
        tokenizer: The model's.
        settings: The `Settings` that it was exported with.
        max_new_tokens: Of those that take it, at most the settings'.
    """
    text = sample_text(tokenizer, settings.max_prompt_tokens)
    ids = tokenizer.encode(text)
    controls = {
        "max_new_tokens": min(max_new_tokens, settings.max_new_tokens),
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 1.0,
        "seed": 0,
    }
    if settings.adapters:
        controls["adapter"] = ""
    message = sample_text(tokenizer, settings.message_tokens)
    chat = {"roles": ["user", ""], "contents": [message, ""]}
    languages = {"source": settings.languages[0][0], "target": settings.languages[0][1]}
    default = {"prompt": message}
    if settings.default == "translate" and len(settings.languages) > 1:
        default |= languages
    rows = {
        "tokenize": {"text": text},
        "score": {"text": text},
        "serving_default": default,
        "chat": chat,
        "chat_with_controls": {**chat, **controls},
        "summarize": {"text": text},
        "translate": {"text": text, **languages},
        "generate": {"prompt": text, **controls},
        "generate_ids": {"token_ids": ids, "lengths": len(ids), **controls},
    }
    return {name: row for name, row in rows.items() if name in settings.signatures}


def sample_text(tokenizer, most: int) -> str:
    """A short text that the tokenizer knows, with room for what comes before it.

    Args:
        tokenizer: The tokenizer.
        most: Tokens that there may be.
    """
    special = set(tokenizer.special_tokens.values())
    ordinary = (i for i in range(tokenizer.vocab_size) if i not in special)
    pieces = (tokenizer.decode([token_id]) for token_id in ordinary)
    texts = itertools.chain(["Once upon a time"], pieces)
    return next(text for text in texts if _fits(tokenizer, text, most))


def _fits(tokenizer, text, most):
    # the model card writes it into shell commands
    if not text.replace(" ", "").isalnum():
        return False
    try:
        return len(tokenizer.start_ids) + len(tokenizer.encode(text)) <= most
    except ValueError:  # a character that it doesn't know
        return False
