"""The backend functions on PyTorch."""

# Axes: b batch, k key-value head, t new position, s cache position, h head dimension

import functools
import math
import os
import threading

import keras
import numpy as np
import torch
from torch.optim.adamw import adamw
from torch.utils.weak import WeakIdKeyDictionary

from keras_gpt.backend.torch_steps import record_step  # noqa: F401

# Large tensors in large pages of memory, a fifth of a step with many weights: read when
# the first of them is made
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

BYTES_PER_LOGIT = 16  # itself, its exponential, and the gradients of both
_MAX_UNFUSED = 512  # tokens of training in half precision
_PIECE = 1 << 16  # integers
_running = threading.Lock()


def fused_attention(query, key, value, mask=None):
    """Causal attention of `(b, n, t, h)` to `(b, k, t, h)` by PyTorch's kernel.

    `None` with a mask, and where on CPUs its gradient in half precision is slower than
    that of single operations, whose scores take more memory the longer the sequence.
    """
    on_cpu, length = query.device.type == "cpu", query.shape[2]
    is_slow = query.requires_grad and _is_kernel_slow(on_cpu, query.itemsize, length)
    if mask is not None or is_slow:
        return None
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
    )


def _is_kernel_slow(on_cpu, itemsize, length):
    """Whether the gradient of the attention takes longer than that of its parts."""
    return on_cpu and itemsize < 4 and length <= _MAX_UNFUSED


def multiply(x, kernel, bias=None, is_transposed=False):
    """`x` times `kernel`, or times that turned, plus `bias`."""
    kernel = keras.ops.swapaxes(kernel, -1, -2) if is_transposed else kernel
    y = keras.ops.matmul(x, kernel)
    return y if bias is None else y + bias


def gelu(x):
    """The exact GELU."""
    return keras.ops.gelu(x, approximate=False)


def logsumexp(x):
    """Over the last axis, which is kept."""
    return torch.logsumexp(x, -1, keepdim=True)


def softmax(x):
    """Over the last axis, in the type of `x`; PyTorch sums in float32."""
    return torch.softmax(x, dim=-1)


def dropout(x, rate, seed_generator):
    """`x` with each element dropped with a probability of `rate`, else scaled up.

    On an accelerator, where the hash would be a dozen kernels, by PyTorch's generator.
    """
    if x.device.type != "cpu":
        return keras.random.dropout(x, rate, seed=seed_generator)
    kept = torch.from_numpy(
        _draw_kept(x.numel(), rate, *seed_generator.next().tolist())
    )
    return x * kept.reshape(x.shape).to(x.dtype).mul_(1 / (1 - rate))


@torch.compiler.disable  # which would make its loop PyTorch's
def _draw_kept(size, rate, seed, count):
    """As `xla.draw_kept` of `size` elements, in NumPy, in pieces that a cache holds.

    PyTorch draws for each element on one thread, in ten times the time.
    """
    seed, count = (np.array([value & 0xFFFFFFFF], "uint32") for value in (seed, count))
    start = _mix(seed ^ _mix(count ^ np.uint32(0x9E3779B9)))
    step = _mix(start) | np.uint32(1)
    kept = np.empty(size, "bool")
    steps = np.arange(min(_PIECE, -(-size // 2)), dtype="uint32") * step
    for first in range(0, size, 2 * _PIECE):
        bits = _mix(steps + (start + np.uint32(first // 2) * step)).view("uint16")
        piece = kept[first : first + 2 * _PIECE]
        np.greater_equal(bits[: len(piece)], int(rate * 2**16), out=piece)
    return kept


def _mix(x):
    """Permute the integers of 32 bits."""
    x = x ^ (x >> np.uint32(16))
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def default_jit_compile(dtype):
    """Whether `fit` should compile: no, torch.compile takes a minute on a CPU."""
    del dtype
    return False


def device_memory():
    """Bytes used at most so far on an accelerator, and all; `None` on a CPU."""
    if not torch.cuda.is_available():
        return None
    total = torch.cuda.get_device_properties(0).total_memory
    return torch.cuda.max_memory_allocated(), total


def zeros(shape, dtype):
    """Zeros, to be replaced."""
    return keras.ops.zeros(shape, dtype)


def assign(variable, chunks):
    """Give a variable the values of NumPy arrays that hold some rows each."""
    start = 0
    for rows in chunks:
        stop = start + len(rows)
        if rows.dtype.name == "bfloat16":  # PyTorch doesn't know NumPy's
            rows = torch.from_numpy(rows.view("int16")).view(torch.bfloat16)
        with torch.no_grad():
            variable.value[start:stop].copy_(torch.as_tensor(rows))
        start = stop


def bucket(size):
    """The size to pad to: its own, since nothing is compiled."""
    return size


def compile_function(function, variables):
    """Run `function(state, inputs)` without recording gradients, one at a time.

    Both may hold arrays of NumPy.

    While `make_fx` records, it replaces how PyTorch calls any module, in all threads.
    """
    del variables

    def run(state, inputs):
        with _running, torch.inference_mode():
            return function(_to_tensors(state), _to_tensors(inputs))

    return run


def _to_tensors(values):
    """By name, with tensors for NumPy's arrays, in dictionaries inside of it too."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = _to_tensors(value)
        elif isinstance(value, np.ndarray):
            value = keras.ops.convert_to_tensor(value)
        found[name] = value
    return found


def in_numpy(*tensors):
    """The tensors as NumPy's, `None` where they aren't in its memory."""
    if tensors[0].device.type != "cpu":
        return None
    return [tensor.numpy() for tensor in tensors]


def matmul_int8(x, kernel, scale, is_transposed=False):
    """`x` `(..., input)` times int8 `kernel` `(input, output)` over `scale`.

    On a CPU, and where no gradient is wanted, by a kernel that reads the int8 weights
    themselves; it multiplies in bfloat16 and adds in float32. `is_transposed`: the
    weights are `(output, input)`.
    """
    kernel, scale = (keras.ops.convert_to_tensor(value) for value in (kernel, scale))
    kernel = kernel.t() if is_transposed else kernel
    # the kernel reads beyond other lengths: it was seen to crash
    is_read_whole = kernel.shape[0] % 32 == 0
    if x.device.type != "cpu" or x.requires_grad or not is_read_whole:
        return torch.matmul(x, kernel.to(x.dtype)) / scale.to(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
    ones = _ones(kernel.shape[1])
    product = torch._weight_int8pack_mm(rows, _laid_out(kernel).t(), ones)
    return (product / scale).to(x.dtype).reshape(*x.shape[:-1], -1)


def matmul_int4(x, dense):
    """`x` `(..., input)` times a layer's int4 kernel, `None` where no kernel serves.

    On a CPU there is one, which reads the weights in a layout of its own, made of them
    once; it multiplies in bfloat16 and adds in float32.
    """
    size, rest = divmod(x.shape[-1], dense.kernel_scale.shape[0])
    fits = size in (32, 64, 128, 256) and rest == 0 and dense.units % 16 == 0
    if x.device.type != "cpu" or x.requires_grad or not fits:
        return None
    packed, scale_and_zero = _pack_int4(dense)
    rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
    y = torch._weight_int4pack_mm_for_cpu(rows, packed, size, scale_and_zero)
    return y.to(x.dtype).reshape(*x.shape[:-1], -1)


_packed = WeakIdKeyDictionary()  # by the layers' own, with the version of these


def _pack_int4(dense):
    """The int4 weights, and scales and zero points, as PyTorch's kernel reads them."""
    own = dense.packed_kernel.value
    version, packed = _packed.get(own, (None, None))
    if packed is not None and version == own._version:
        return packed
    with torch.inference_mode(False), torch.no_grad():
        steps = dense.kernel.t().to(torch.int32) + 8  # (output, input)
        scale, zero = dense.kernel_scale.value, dense.kernel_zero.value
        new = (
            torch._convert_weight_to_int4pack_for_cpu(steps, 1),
            torch.stack([scale, -zero * scale], dim=-1).to(torch.bfloat16),
        )
        for old, value in zip(packed or (), new, strict=False):
            old.copy_(value)  # which a recorded step reads
        _packed[own] = own._version, packed or new
    return packed or new


@functools.cache
def _ones(size):
    return torch.ones(size, dtype=torch.bfloat16)


def _laid_out(kernel):
    """The kernel, whose memory is put column by column if it isn't yet."""
    if not kernel.t().is_contiguous():
        with torch.inference_mode(False):
            kernel.data = kernel.t().contiguous().t()
    return kernel


def rematerialize(function, layer, x):
    """`function(x)`, which calls the layer; what is inside is not kept for gradients.

    They make it anew, with the same dropout.
    """
    counts = [v for v in layer.variables if "int" in v.dtype]  # of seeds
    before, after = [v.value.clone() for v in counts], []

    def pure(x):
        mapping = list(zip(counts, before, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            y = function(x)
        after[:] = after or [scope.get_current_value(v) for v in counts]
        return y

    y = torch.utils.checkpoint.checkpoint(pure, x, use_reentrant=False)
    for count, value in zip(counts, after, strict=True):
        count.assign(value)
    return y


def count_kept_bytes(config, rows, length, itemsize, remat):
    """Bytes that the blocks keep in training until their gradients are made.

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
    hidden, is_gated = config.hidden_dimension, config.activation == "swiglu"
    # of a token: input and output of both norms, in float32 and as they are multiplied
    wide = 2 * width * (2 if config.normalization == "rms_norm" else 1)
    narrow = 2 * width + projected + heads + hidden * (4 if is_gated else 2)
    if config.qk_norm:
        wide += turned * (2 if itemsize < 4 else 1)
    if config.position_embedding == "rotary":
        narrow += turned
    if config.dropout_rate:
        narrow += 2 * width + 2 * config.num_heads * length
    masked = config.sliding_window or config.document_separator_id
    is_slow = _is_kernel_slow(not torch.cuda.is_available(), itemsize, length)
    if config.dropout_rate or masked or is_slow:  # no kernel: the attention weights
        narrow += config.num_heads * length + turned
    kept = rows * length * (4 * wide + itemsize * narrow)
    if itemsize < 4:  # and the matrices, in the type in which they are multiplied
        matrices = projected + heads + hidden * (3 if is_gated else 2)
        kept += itemsize * width * matrices
    if remat:
        return kept + config.num_layers * itemsize * rows * length * width
    return config.num_layers * kept


def sum_over_chunks(function, variables, x, others):
    """The sum of `function(x, *others)` over the first axis of all, a number.

    Its gradients, to `x` and to what is trained of the `variables` that it reads, are
    made along with it, so that nothing is kept of a chunk.
    """
    trained = [v for v in variables if v.trainable]
    return _SumOverChunks.apply(
        function, trained, others, x, *(v.value for v in trained)
    )


class _SumOverChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, variables, others, x, *values):
        cast = [value.detach().to(x.dtype).requires_grad_() for value in values]
        sums = [None] * len(values)
        to_x = torch.empty_like(x)
        total = 0.0
        mapping = list(zip(variables, cast, strict=True))
        for i in range(len(x)):
            chunk = x[i].detach().requires_grad_()
            with torch.enable_grad(), keras.StatelessScope(state_mapping=mapping):
                value = function(chunk, *(other[i] for other in others))
            gradient, *gradients = torch.autograd.grad(
                value, [chunk, *cast], allow_unused=True
            )
            total = total + value.detach()
            to_x[i] = gradient
            for j, new in enumerate(gradients):
                if sums[j] is None:  # in the gradient's own layout, to add fast
                    sums[j] = None if new is None else new.to(values[j].dtype)
                elif new is not None:
                    sums[j].add_(new)
        ctx.gradients = to_x, sums
        return total

    @staticmethod
    def backward(ctx, upstream):
        to_x, sums = ctx.gradients
        sums = (None if sum_ is None else sum_ * upstream for sum_ in sums)
        return None, None, None, (upstream * to_x).to(to_x.dtype), *sums


def look_up(embedding, ids):
    """The embeddings of ids, in training; their gradient is dense."""
    return embedding(ids)


def update_adamw(
    variables,
    gradients,
    means,
    squares,
    *,
    step,
    learning_rate,
    beta_1,
    beta_2,
    epsilon,
    weight_decay,
    clip_norm,
):
    """A step of AdamW, in place, by the kernel of `torch.optim.AdamW(fused=True)`.

    It is told that infinitely many steps were done, and corrects no bias: Keras, which
    does so in the rate, adds epsilon to the uncorrected root.

    Args:
        variables: Those to train; of them matrices decay.
        gradients: Tensors of the same shapes, which are scaled in place.
        means: Variables, the moving averages of the gradients.
        squares: Variables, those of their squares.
        step: The number of this one, from 1, a tensor.
        learning_rate: A tensor.
        beta_1: Of the means.
        beta_2: Of the squares.
        epsilon: Added to the root of the squares.
        weight_decay: For a learning rate of 1.
        clip_norm: Largest norm of all gradients, or `None`.

    Returns:
        Whether it was done: here always.
    """
    device = gradients[0].device
    learning_rate = keras.ops.convert_to_tensor(learning_rate)
    to_mean = 1 - beta_1**step
    to_square = torch.sqrt(1 - beta_2**step)
    rate = learning_rate * to_square / to_mean
    decay, scale = 0.0, None
    if device.type == "cpu":
        decay = float(weight_decay * to_mean / to_square)
    elif weight_decay:  # reading a number would wait for the device
        matrices = [v.value for v in variables if len(v.shape) > 1]
        torch._foreach_mul_(matrices, 1 - weight_decay * learning_rate)
    if clip_norm is not None:
        norm = torch.nn.utils.get_total_norm(gradients)
        # what isn't finite shall show in all weights
        scale = torch.clamp(norm / clip_norm, min=1.0) + (norm - norm)
    everything = list(zip(variables, gradients, means, squares, strict=True))
    for decays in (True, False):
        chosen = [group for group in everything if (len(group[0].shape) > 1) == decays]
        adamw(
            [variable.value for variable, _, _, _ in chosen],
            [gradient for _, gradient, _, _ in chosen],
            [mean.value for _, _, mean, _ in chosen],
            [square.value for _, _, _, square in chosen],
            [],
            [torch.full((), math.inf, device=device)] * len(chosen),
            fused=True,
            grad_scale=scale,
            amsgrad=False,
            beta1=beta_1,
            beta2=beta_2,
            lr=rate,
            weight_decay=decay if decays else 0.0,
            eps=epsilon,
            maximize=False,
        )
    return True


def write_cache(cache, new, position):
    """Put `new` `(b, k, t, h)` at each row's `position` `(b, t)` of `(b, k, s, h)`."""
    rows = torch.arange(cache.shape[0], device=cache.device)[:, None]
    cache[rows, :, position] = new.transpose(1, 2)
    return cache


def put_row(batch, row, row_index):
    """Put a row's cache `(1, k, t, h)` into the first places of `(b, k, s, h)`."""
    batch[row_index, :, : row.shape[2]] = row[0]
    return batch
