"""Linear layers whose weights may be int8."""

from keras import ops

from keras_gpt import backend


def linear(dense, x, training=None):
    """`dense(x)`, plus what adapters learnt; int8 weights are read as they are.

    Keras would round `x` to int8 too, which costs accuracy, and it reads int8 weights
    no faster than others.

    Args:
        dense: A `keras.layers.Dense` without activation.
        x: `(..., input)`.
        training: Whether the adapter's dropout applies.

    Returns:
        `(..., output)`.
    """
    if dense.quantization_mode != "int8" or dense.lora_enabled:
        y = backend.apply_to_rows(dense, x)
    else:
        y = backend.matmul_int8(x, dense.kernel, dense.kernel_scale)
        if dense.bias is not None:
            y = y + ops.cast(dense.bias, y.dtype)
    adapter = getattr(dense, "adapter", None)
    return y if adapter is None else adapter(y, x, training)


def project_int8(embedding, x):
    """What a `keras.layers.ReversibleEmbedding` with int8 weights does in reverse.

    Args:
        embedding: The layer.
        x: `(..., embedding)`.

    Returns:
        Logits `(..., vocab_size)`.
    """
    if embedding.tie_weights:
        kernel, scale = embedding.embeddings, embedding.embeddings_scale
    else:
        kernel, scale = embedding.reverse_embeddings, embedding.reverse_embeddings_scale
    return backend.matmul_int8(x, kernel, scale, is_transposed=embedding.tie_weights)
