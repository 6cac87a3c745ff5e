"""What JAX and TensorFlow have in common: XLA."""

import math

import numpy as np
from keras import ops

BYTES_PER_LOGIT = 10  # itself, its gradient, and some of what is between
_NUM_BLOCKS = 8  # of a kernel's rows, if that divides them: best of 4, 8, 16 and 32


def bucket(size):
    """The size to pad to, so that few shapes are compiled: a power of two."""
    return 1 << (size - 1).bit_length()


def count_kept_bytes(config, rows, length, itemsize, remat, copies_of_scores=3):
    """Bytes that the blocks keep in training until their gradients are made.

    As XLA says of what it compiled for CPUs; norms are made in float32.

    Args:
        config: Of the model.
        rows: Of the batch.
        length: Tokens in a row.
        itemsize: Bytes of a number in products.
        remat: Whether what is inside a block is computed twice.
        copies_of_scores: That attention keeps, without dropout.
    """
    width, heads = config.embedding_dimension, config.num_heads * config.head_dimension
    turned = heads + config.kv_heads * config.head_dimension
    projected = turned + config.kv_heads * config.head_dimension
    hidden = config.hidden_dimension * (4 if config.activation == "swiglu" else 3)
    scores = copies_of_scores * config.num_heads * length
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


def in_numpy(*tensors):
    """`None`: XLA's tensors aren't in NumPy's memory."""
    del tensors


def logsumexp(x):
    """Over the last axis, which is kept."""
    largest = ops.max(x, axis=-1, keepdims=True)
    # the sum as a product: XLA's own adds up exponentials by one core
    ones = ops.ones((x.shape[-1], 1), x.dtype)
    return largest + ops.log(ops.matmul(ops.exp(x - largest), ones))


def tie(kernel, x):
    """The kernel, which XLA can't know to be the same for each `x`.

    Of what depends on nothing it makes floats in advance: of all kernels before the
    first product, and once before the loop that generates. So tied, they are made when
    they are used, where those of others were.
    """
    never = ops.sin(ops.sum(ops.reshape(x, (-1,))[:1])) > 2  # nor of what is no number
    return ops.where(never, ops.zeros((), kernel.dtype), kernel)


def sum_blocks(x, kernel, as_float):
    """Sums whose sum over the first axis is `x`, one row, times a narrow kernel.

    The terms of each one by one: XLA vectorizes no sum with a cast in it. From blocks
    of whole rows they are made up to twice as fast as from rows that are neighbours.

    Args:
        x: `(1, input)`.
        kernel: `(input, output)`.
        as_float: The function that makes float32 of a block.
    """
    count = math.gcd(_NUM_BLOCKS, kernel.shape[0])
    rows = ops.reshape(ops.cast(x, "float32"), (count, -1, 1))
    blocks = ops.reshape(kernel, (count, -1, kernel.shape[1]))
    return sum(rows[i] * as_float(blocks[i]) for i in range(count))


def matmul_int4(x, dense):
    """`None`: XLA has no product that reads int4 weights."""
    del x, dense


def record_step(function):
    """The function itself, which is compiled as a part of the loop."""
    return function


def softmax(x):
    """Over the last axis, in the type of `x`, computed in float32."""
    return ops.cast(ops.softmax(ops.cast(x, "float32"), axis=-1), x.dtype)


def dropout(x, rate, seed_generator, draw=None):
    """`x` with each element dropped with a probability of `rate`, else scaled up.

    `draw` stands for `draw_kept`, where it is to be called in another way.
    """
    state = seed_generator.next()
    kept = (draw or draw_kept)(x, rate, state[0], state[1])
    return ops.where(kept, x / (1 - rate), 0)


def draw_kept(x, rate, seed, count):
    """Which elements of `x` a dropout keeps, booleans.

    Element `i` has 16 random bits, half of those of a hash of `i // 2`, by which it is
    dropped with a probability of `rate`: the same elements on every backend (but for
    PyTorch on an accelerator), however many devices there are. XLA's own generator
    takes a tenth of a small model's step, this a fifth of that.

    Args:
        x: Of any shape.
        rate: At least 0 and below 1.
        seed: A number, fixed in a run.
        count: The number of the draw.

    References:
        - [Wellons, 2018](https://nullprogram.com/blog/2018/07/31/), "lowbias32"
        - [Steele et al., 2014](https://doi.org/10.1145/2660193.2660195): steps of an
          odd number that is random too
    """
    seed, count = (ops.cast(value, "uint32") for value in (seed, count))
    start = _mix(seed ^ _mix(count ^ np.uint32(0x9E3779B9)))
    step = _mix(start) | np.uint32(1)
    number = ops.zeros_like(x, "uint32")
    for axis, size in enumerate(ops.shape(x)):
        index = ops.cast(ops.arange(size), "uint32")
        index = ops.reshape(index, (-1,) + (1,) * (len(x.shape) - axis - 1))
        number = number * ops.cast(size, "uint32") + index
    hashes = _mix(start + ops.right_shift(number, np.uint32(1)) * step)
    bits = ops.right_shift(hashes, (number & np.uint32(1)) * np.uint32(16))
    return (bits & np.uint32(0xFFFF)) >= np.uint32(rate * 2**16)


def _mix(x):
    """Permute the integers of 32 bits."""
    x = (x ^ ops.right_shift(x, np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ ops.right_shift(x, np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ ops.right_shift(x, np.uint32(16))
