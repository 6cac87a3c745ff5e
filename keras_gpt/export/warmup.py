"""Requests that TensorFlow Serving answers before it calls a model available.

The first run of each signature is slow: TensorFlow then optimizes its graph.

References:
    - [SavedModel warm-up](
      https://www.tensorflow.org/tfx/serving/saved_model_warmup)
"""

import itertools
from pathlib import Path

import tensorflow as tf

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
_NEW_TOKENS = 2  # prefill and a step of the loop


def write_warmup(tokenizer, settings, folder: str | Path, model_name: str) -> int:
    """Write the requests into a SavedModel.

    Args:
        tokenizer: The model's.
        settings: The `Settings` that it was exported with.
        folder: The SavedModel's folder.
        model_name: Name of the model on the server.

    Returns:
        The number of requests.
    """
    from tensorflow_serving.apis import prediction_log_pb2

    path = Path(folder) / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    requests = list(_requests(tokenizer, settings))
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = model_name
            request.model_spec.signature_name = signature
            for name, values in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
            writer.write(log.SerializeToString())
    return len(requests)


def _requests(tokenizer, settings):
    """Names of signatures and their inputs."""
    text = sample_text(tokenizer, settings.max_prompt_tokens)
    ids = tokenizer.encode(text)
    yield "tokenize", {"text": [text]}
    yield "score", {"text": [text]}
    # alone, since it makes all the tokens that it may
    yield "serving_default", {"prompt": [text]}
    for size in settings.batch_sizes:
        controls = {
            "max_new_tokens": tf.fill(
                [size], min(_NEW_TOKENS, settings.max_new_tokens)
            ),
            "temperature": tf.fill([size], 1.0),
            "top_k": tf.fill([size], 0),
            "top_p": tf.fill([size], 1.0),
            "seed": tf.range(size),
        }
        yield "generate", {"prompt": [text] * size, **controls}
        yield (
            "generate_ids",
            {
                "token_ids": tf.constant([ids] * size, tf.int32),
                "lengths": tf.fill([size], len(ids)),
                **controls,
            },
        )


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
