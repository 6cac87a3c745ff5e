"""Products with the weights of Keras's layers, which may be int8 or int4."""

import keras
import numpy as np
from keras import ops

from keras_gpt import backend

GROUP_SIZE = 32  # weights that share a scale in 4 bits, as in GGUF's Q4_1


@keras.saving.register_keras_serializable("keras_gpt")
class Linear(keras.layers.Dense):
    """Keras's `Dense`, whose groups in int4 reach from the least weight to the largest.

    They do so in 15 steps, as in GGUF's Q4_1: what was read from such a file is stored
    without loss. The zero points of Keras's are whole numbers.
    """

    def add_weight(self, *args, name=None, dtype=None, **kwargs):
        dtype = None if name == "kernel_zero" and dtype == "int8" else dtype
        return super().add_weight(*args, name=name, dtype=dtype, **kwargs)

    def quantize(self, mode=None, type_check=True, config=None):
        del type_check  # which lets none but Keras's own class pass
        kernel = self.kernel.value
        super().quantize(mode, type_check=False, config=config)
        if self.is_grouped and kernel.shape[0] % self.kernel_scale.shape[0] == 0:
            self._store_groups(ops.convert_to_numpy(ops.cast(kernel, "float32")))

    def _store_groups(self, kernel):
        groups, units = self.kernel_scale.shape
        kernel = kernel.reshape(groups, -1, units)
        least, largest = kernel.min(axis=1), kernel.max(axis=1)
        scale = group_scale(least, largest)
        steps = np.rint((kernel - least[:, None]) / scale[:, None]) - 8
        steps = ops.convert_to_tensor(steps.reshape(-1, units).astype("int8"))
        self.packed_kernel.assign(keras.quantizers.pack_int4(steps, axis=-1)[0])
        self.kernel_scale.assign(scale)
        self.kernel_zero.assign(-8 - least / scale)

    @property
    def is_grouped(self):
        """Whether the weights are int4, some of each output sharing a scale."""
        return self.quantization_mode == "int4" and hasattr(self, "kernel_zero")

    @property
    def packed_kernel(self):
        """The int4 weights, two in each byte."""
        return next(v for v in self.variables if v.name == "kernel")


def group_scale(least, largest):
    """The step from one to the next of the 16 values of a group, of NumPy arrays."""
    same = np.where(least == 0, 1, np.abs(least))  # for a group of equal weights
    return np.where(least < largest, largest - least, same) / 15


def linear(dense, x, training=None):
    """`dense(x)`, plus what adapters learnt.

    Its weights are read as they are: for int8 Keras would round `x` to int8 too, which
    costs accuracy, and in bfloat16 XLA would multiply by half as fast.

    Args:
        dense: A `Linear` without activation.
        x: `(..., input)`.
        training: Whether the adapter's dropout applies.

    Returns:
        `(..., output)`.
    """
    if dense.quantization_mode in (None, "int8") and not dense.lora_enabled:
        y = _multiply(dense, x, "kernel", dense.bias)
    else:
        y = _multiply_int4(dense, x)
        y = dense(x) if y is None else y
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


def _multiply_int4(dense, x):
    """`dense(x)` of int4 weights, `None` where the backend has nothing faster."""
    if dense.lora_enabled or not dense.is_grouped:
        return None
    y = backend.matmul_int4(ops.cast(x, dense.compute_dtype), dense)
    return y if y is None or dense.bias is None else y + ops.cast(dense.bias, y.dtype)
