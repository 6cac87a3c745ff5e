"""From token ids to vectors: token and position embeddings."""

# Axes: b batch, t position, e embedding

import keras
import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.config import POSITION_EMBEDDINGS, check_choice
from keras_gpt.layers.base import BaseLayer, get_initializer
from keras_gpt.layers.linear import reverse
from keras_gpt.token_ids import check_length


def sinusoidal_positions(positions, embedding_dimension):
    """Sine and cosine positions.

    Args:
        positions: Integers `(..., sequence)`.
        embedding_dimension: Width of the result.

    Returns:
        float32 `(..., sequence, embedding_dimension)`: sines at even indices and
        cosines at odd ones, wavelengths from `2 * pi` to `10000 * 2 * pi`.

    References:
        - [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3.5
    """
    indices = np.arange(embedding_dimension)
    frequencies = 10000.0 ** -(2 * (indices // 2) / embedding_dimension)
    # cosine is sine a quarter turn later
    phases = np.where(indices % 2, np.pi / 2, 0.0)
    positions = ops.cast(positions, "float32")[..., None]
    return ops.sin(
        positions * ops.convert_to_tensor(frequencies, "float32")
        + ops.convert_to_tensor(phases, "float32")
    )


@keras.saving.register_keras_serializable("keras_gpt")
class TokenAndPositionEmbedding(BaseLayer):
    """Token embedding plus position embedding, and the projection back to logits.

    Args:
        vocab_size: Number of token ids.
        context_length: Longest sequence.
        embedding_dimension: Width of the output.
        position_embedding: `"learned"`, `"sinusoidal"`, `"none"`, or `"rotary"`, which
            adds nothing here: attention turns queries and keys instead.
        tie_embeddings: Whether `project` uses the transposed token embedding.
        dropout_rate: Fraction of the sum dropped in training. Defaults to 0.
        embeddings_initializer: Of both matrices. Defaults to N(0, 0.02).
        **kwargs: `name`, `dtype`, `trainable` of `keras.layers.Layer`.

    Call arguments:
        token_ids: Integers `(batch, sequence)`.
        positions: Integers `(sequence,)` or `(batch, sequence)`. Defaults to
            0, 1, 2, ...

    Returns:
        `(batch, sequence, embedding)` in the compute dtype.

    Raises:
        ValueError: The sequence is longer than `context_length`.

    Example:

    >>> import numpy as np
    >>> from keras_gpt.layers import TokenAndPositionEmbedding
    >>> embedding = TokenAndPositionEmbedding(
    ...     vocab_size=65, context_length=16, embedding_dimension=8)
    >>> tuple(embedding(np.array([[1, 2, 3]])).shape)
    (1, 3, 8)
    >>> tuple(embedding.embedding_matrix.shape)
    (65, 8)
    """

    def __init__(
        self,
        vocab_size,
        context_length,
        embedding_dimension,
        *,
        position_embedding="learned",
        tie_embeddings=True,
        dropout_rate=0.0,
        embeddings_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_choice("position_embedding", position_embedding, POSITION_EMBEDDINGS)
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.embedding_dimension = embedding_dimension
        self.position_embedding = position_embedding
        self.tie_embeddings = tie_embeddings
        self.dropout_rate = dropout_rate
        self.embeddings_initializer = get_initializer(embeddings_initializer)
        self.tokens = keras.layers.ReversibleEmbedding(
            vocab_size,
            embedding_dimension,
            tie_weights=tie_embeddings,
            embeddings_initializer=self.embeddings_initializer.clone(),
            reverse_dtype=self.compute_dtype,  # Keras would keep the matrix in float32
            dtype=self.dtype_policy,
            name="tokens",
        )
        if position_embedding == "learned":
            self.positions = keras.layers.Embedding(
                context_length,
                embedding_dimension,
                embeddings_initializer=self.embeddings_initializer.clone(),
                dtype=self.dtype_policy,
                name="positions",
            )
        self.dropout = self.make_dropout("dropout")

    def build(self, token_ids_shape):
        self.tokens.build(token_ids_shape)
        if not self.tie_embeddings and hasattr(self.tokens, "reverse_embeddings"):
            # Keras draws both matrices alike: draw the second anew
            matrix = self.tokens.reverse_embeddings
            initializer = self.embeddings_initializer.clone()
            matrix.assign(initializer(matrix.shape, dtype=matrix.dtype))
        if self.position_embedding == "learned":
            self.positions.build(token_ids_shape)
        self.dropout.build((*token_ids_shape, self.embedding_dimension))
        self.built = True

    @property
    def embedding_matrix(self):
        """The token embedding, a variable `(vocab_size, embedding_dimension)`."""
        return self.tokens.embeddings

    def call(self, token_ids, positions=None, training=None):
        length = token_ids.shape[1]
        # while exporting, a length may be a symbol
        if isinstance(length, int):
            check_length(length, self.context_length)
        x = _look_up(self.tokens, token_ids, training)  # (b, t, e)
        if self.position_embedding in ("learned", "sinusoidal"):
            if positions is None:
                positions = ops.arange(ops.shape(token_ids)[1], dtype="int32")
            if self.position_embedding == "learned":
                x = x + _look_up(self.positions, positions, training)
            else:
                sinusoids = sinusoidal_positions(positions, self.embedding_dimension)
                x = x + ops.cast(sinusoids, x.dtype)
        return self.dropout(x, training=training)

    def compute_output_shape(self, token_ids_shape, positions_shape=None):
        return (*token_ids_shape, self.embedding_dimension)

    def project(self, x):
        """Logits `(..., vocab_size)`, float32, of `x` `(..., embedding)`.

        The product runs in the compute dtype, as in a mixed-precision `Dense`: a
        float32 product would cost half precision most of its speed, this being
        the largest matrix of a small GPT.
        """
        return ops.cast(reverse(self.tokens, x), "float32")


def _look_up(embedding, ids, training):
    """Call `embedding`, in training with a gradient that is right on TensorFlow.

    There the gradient of a look-up is a list of rows, in which Keras's Adam takes an
    id that occurs twice for two gradients; `ReversibleEmbedding` with tied weights
    hides it, since the projection's gradient is dense.
    """
    if not training or embedding.quantization_mode is not None:
        return embedding(ids)
    return backend.look_up(embedding, ids)
