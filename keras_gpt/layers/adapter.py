"""What LoRA adds to a linear layer: `LowRankAdapter`, or `RowAdapters`, one a row."""

# Axes: b batch, t position, i input, r rank (of all adapters, one after another),
#       o output

import contextlib
import contextvars
import random

import keras
import numpy as np
from keras import ops

from keras_gpt.layers.base import BaseLayer

# Which ranks of the adapters each row of the batch in this thread has, `(b, 1, r)`
_ranks_of_rows = contextvars.ContextVar("ranks_of_rows", default=None)


@keras.saving.register_keras_serializable("keras_gpt")
class LowRankAdapter(BaseLayer):
    """A product of two thin matrices, which LoRA trains beside a frozen one.

    Keras's own `Dense.enable_lora` adds the product to the kernel before it multiplies:
    a backward pass then costs as much as training the kernel, there can be no dropout,
    and in a bfloat16 layer what is trained is bfloat16, in which small updates vanish.

    Args:
        units: Width of the output.
        rank: Columns of the first matrix and rows of the second, at most the width of
            the input.
        alpha: The product counts `alpha / rank` times. Defaults to `rank`.
        dropout_rate: Fraction of the input dropped in training. Defaults to 0.
        **kwargs: `name`, `dtype` of `keras.layers.Layer`.

    Call arguments:
        x: `(..., input)`.

    Returns:
        `(..., units)`: zeros until it was trained.

    References:
        - [Hu et al., 2021](https://arxiv.org/abs/2106.09685)

    Example:

    >>> import numpy as np
    >>> from keras_gpt.layers import LowRankAdapter
    >>> adapter = LowRankAdapter(3, rank=2)
    >>> adapter(np.ones((1, 4, 8), "float32")).shape == (1, 4, 3)
    True
    """

    def __init__(self, units, *, rank, alpha=None, dropout_rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.rank = rank
        self.alpha = alpha
        self.dropout_rate = dropout_rate

    def build(self, x_shape):
        if not 1 <= self.rank <= x_shape[-1]:
            raise ValueError(
                f"`rank` must be from 1 to {x_shape[-1]}, the width of the input. "
                f"Received: rank={self.rank}."
            )
        self.down = self.add_weight(
            (x_shape[-1], self.rank), initializer=_orthonormal, name="down"
        )
        self.up = self.add_weight((self.rank, self.units), "zeros", name="up")
        # a weight, so that a compiled model can be run without the adapter
        scale = (self.rank if self.alpha is None else self.alpha) / self.rank
        self.scale = self.add_weight(
            (), keras.initializers.Constant(scale), trainable=False, name="scale"
        )
        self.dropout = self.make_dropout("dropout")
        self.dropout.build(x_shape)
        self.built = True

    def call(self, x, training=None):
        x = ops.matmul(self.dropout(x, training=training), self.down)  # (..., r)
        return ops.matmul(x * self.scale, self.up)  # (..., o)

    def compute_output_shape(self, x_shape):
        return (*x_shape[:-1], self.units)

    def add_to(self, y, x, training=None):
        """`y`, what the frozen matrix makes of `x`, and what the adapter adds."""
        return y + self(x, training=training)

    def product(self):
        """What is added to the frozen matrix, NumPy float32 `(input, units)`."""
        down, up, scale = (
            np.asarray(ops.convert_to_numpy(weight), "float32")
            for weight in (self.down, self.up, self.scale)
        )
        return scale * (down @ up)


class RowAdapters(keras.layers.Layer):
    """Several adapters of one matrix, of which each row of a batch has one or none.

    They stand side by side as one, and a row sees of their ranks only its own: two
    products with shared matrices are faster than one with gathered ones for each row.

    Args:
        units: Width of the output.
        rank: Of all adapters together.
        **kwargs: `name`, `dtype` of `keras.layers.Layer`.

    Call arguments:
        x: `(batch, sequence, input)`.
        ranks: `(batch, 1, rank)`, 1 where a rank is the row's, else 0.

    Returns:
        `(batch, sequence, units)`: zeros for rows without adapter.
    """

    def __init__(self, units, *, rank, **kwargs):
        super().__init__(trainable=False, **kwargs)
        self.units = units
        self.rank = rank

    def build(self, x_shape):
        self.down = self.add_weight((x_shape[-1], self.rank), "zeros", name="down")
        self.up = self.add_weight((self.rank, self.units), "zeros", name="up")
        self.built = True

    def call(self, x, ranks):
        x = ops.matmul(x, self.down) * ranks  # (b, t, r)
        return ops.matmul(x, self.up)  # (b, t, o)

    def add_to(self, y, x, training=None):
        """`y`, what the matrix makes of `x`, and what the adapter of each row adds."""
        del training
        ranks = _ranks_of_rows.get()
        return y if ranks is None else y + self(x, ranks)


class Adapters(keras.layers.Layer):
    """The adapters of a model, at first none.

    In a layer of their own, because a model takes in no more layers once it was
    quantized.

    Attributes:
        layers: The `LowRankAdapter`s or `RowAdapters`, block by block.
        settings: What the former were made with, or `None` without any.
        frozen: Weak references to the variables that trained before.
        ranks: The rank of each adapter by its name, of `RowAdapters`.
        targets: Which matrices the layers adapt.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layers = []
        self.settings = None
        self.frozen = []
        self.ranks = {}
        self.targets = ()
        self.built = True

    @contextlib.contextmanager
    def of_rows(self, index):
        """While this lasts, each row of a batch is computed with its own adapter.

        Args:
            index: Integers `(batch,)`: the number of each row's adapter in `ranks`,
                from 1, or 0 for none. `None` where no row has any.
        """
        ranks = None
        if index is not None:
            numbers = np.arange(1, 1 + len(self.ranks), dtype="int32")
            owners = np.repeat(numbers, list(self.ranks.values()))  # (r,)
            is_own = ops.equal(index[:, None], owners)  # (b, r)
            ranks = ops.cast(is_own, "float32")[:, None]
        token = _ranks_of_rows.set(ranks)
        try:
            yield
        finally:
            _ranks_of_rows.reset(token)


def _orthonormal(shape, dtype=None):
    """Orthonormal columns, the same on every backend.

    With as many as there are rows, the first step goes where that of the frozen
    matrix would go.
    """
    generator = np.random.Generator(np.random.Philox(random.randint(0, 2**32 - 1)))
    columns, _ = np.linalg.qr(generator.standard_normal(shape))
    return ops.convert_to_tensor(columns.astype("float32"), dtype)
