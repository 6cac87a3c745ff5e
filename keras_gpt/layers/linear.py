"""Products with the weights of Keras's layers, which may be int8."""

from keras import ops

from keras_gpt import backend


def linear(dense, x, training=None):
    """`dense(x)`, plus what adapters learnt.

    Its weights are read as they are: for int8 Keras would round `x` to int8 too, which
    costs accuracy, and in bfloat16 XLA would multiply by half as fast.

    Args:
        dense: A `keras.layers.Dense` without activation.
        x: `(..., input)`.
        training: Whether the adapter's dropout applies.

    Returns:
        `(..., output)`.
    """
    if dense.quantization_mode not in (None, "int8") or dense.lora_enabled:
        y = dense(x)
    else:
        y = _multiply(dense, x, "kernel", dense.bias)
    adapter = getattr(dense, "adapter", None)
    return y if adapter is None else adapter(y, x, training)


def reverse(embedding, x):
    """What a `keras.layers.ReversibleEmbedding` does in reverse: logits.

    Args:
        embedding: The layer.
        x: `(..., embedding)`.

    Returns:
        `(..., vocab_size)`.
    """
    if embedding.quantization_mode not in (None, "int8"):
        return embedding(x, reverse=True)
    is_tied = embedding.tie_weights
    name = "embeddings" if is_tied else "reverse_embeddings"
    return _multiply(embedding, x, name, is_transposed=is_tied)


def _multiply(layer, x, name, bias=None, is_transposed=False):
    """`x` times a layer's weight, of its dtype or int8 with a scale, plus `bias`."""
    kernel, dtype = getattr(layer, name), layer.compute_dtype
    x = ops.cast(x, dtype)
    bias = None if bias is None else ops.cast(bias, dtype)
    if layer.quantization_mode != "int8":
        return backend.multiply(x, ops.cast(kernel, dtype), bias, is_transposed)
    scale = getattr(layer, f"{name}_scale")
    y = backend.matmul_int8(x, kernel, scale, is_transposed)
    return y if bias is None else y + bias
