"""What JAX and TensorFlow have in common: XLA."""

BYTES_PER_LOGIT = 10  # itself, its gradient, and some of what is between


def count_kept_bytes(config, rows, length, itemsize, remat):
    """Bytes that the blocks keep in training until their gradients are made.

    As XLA says of what it compiled for CPUs; norms are made in float32.

    Args:
        config: Of the model.
        rows: Of the batch.
        length: Tokens in a row.
        itemsize: Bytes of a number in products.
        remat: Whether what is inside a block is computed twice.
    """
    width, heads = config.embedding_dimension, config.num_heads * config.head_dimension
    turned = heads + config.kv_heads * config.head_dimension
    projected = turned + config.kv_heads * config.head_dimension
    hidden = config.hidden_dimension * (4 if config.activation == "swiglu" else 3)
    scores = 3 * config.num_heads * length
    if config.dropout_rate:
        scores += config.num_heads * length + 4 * width
    if config.qk_norm:
        scores += 3.5 * turned
    narrow = 2 * projected + hidden + scores
    kept = rows * length * (4 * 10 * width + itemsize * narrow)
    if remat:  # and as much again of inputs and gradients, in another order than ours
        gradients = 4 * width * (projected + heads + hidden)
        inputs = 2 * 4 * rows * length * width
        return kept + config.num_layers * (inputs + gradients)
    return config.num_layers * kept
