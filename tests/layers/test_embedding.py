import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt.layers import DocumentPositions, TokenAndPositionEmbedding

pytestmark = pytest.mark.every_backend

IDS = np.array([[3, 1, 4, 1], [10, 0, 2, 6]])
SIZES = {"vocab_size": 11, "context_length": 6, "embedding_dimension": 8}


def array(x):
    return np.array(ops.convert_to_numpy(x))


def sinusoid(position, dimension):
    """Section 3.5 of "Attention is all you need", number by number."""
    row = []
    for i in range(dimension):
        angle = position / 10000 ** (2 * (i // 2) / dimension)
        row.append(math.cos(angle) if i % 2 else math.sin(angle))
    return row


def test_learned_positions_add_to_tokens():
    embedding = TokenAndPositionEmbedding(**SIZES)
    output = array(embedding(IDS))
    tokens, positions = (array(weight) for weight in embedding.trainable_variables)
    assert (tokens.shape, positions.shape) == ((11, 8), (6, 8))
    np.testing.assert_array_equal(output, tokens[IDS] + positions[:4])


@pytest.mark.parametrize("dimension", [8, 7])
def test_sinusoidal_positions_add_to_tokens(dimension):
    embedding = TokenAndPositionEmbedding(
        **{**SIZES, "embedding_dimension": dimension}, position_embedding="sinusoidal"
    )
    output = array(embedding(IDS))
    (tokens,) = (array(weight) for weight in embedding.trainable_variables)
    expected = tokens[IDS] + np.array([sinusoid(t, dimension) for t in range(4)])
    # float32 angles of up to 3 + pi / 2, known to 5e-7
    np.testing.assert_allclose(output, expected, atol=1e-6)


def test_without_positions_only_tokens_count():
    embedding = TokenAndPositionEmbedding(**SIZES, position_embedding="none")
    output = array(embedding(IDS))
    (tokens,) = (array(weight) for weight in embedding.trainable_variables)
    np.testing.assert_array_equal(output, tokens[IDS])


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_given_positions_replace_the_running_ones(kind):
    embedding = TokenAndPositionEmbedding(**SIZES, position_embedding=kind)
    shifted = array(embedding(IDS, positions=np.array([[0, 1, 0, 1], [2, 3, 4, 5]])))
    np.testing.assert_array_equal(shifted[0, :2], array(embedding(IDS))[0, :2])
    np.testing.assert_array_equal(shifted[0, 2:], array(embedding(IDS[:, 2:]))[0])
    whole = array(embedding(np.array([[0, 0, *IDS[1]]])))
    np.testing.assert_array_equal(shifted[1], whole[0, 2:])


def test_embedding_matrix_is_the_tokens():
    embedding = TokenAndPositionEmbedding(**SIZES)
    embedding.build((None, None))
    assert tuple(embedding.embedding_matrix.shape) == (11, 8)
    assert embedding.embedding_matrix is embedding.trainable_variables[0]


def test_tied_projection_multiplies_with_the_transposed_tokens(randomize):
    embedding = TokenAndPositionEmbedding(**SIZES)
    embedding.build((None, None))
    randomize(embedding)
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32")
    expected = x @ array(embedding.embedding_matrix).T
    # float32 sums of 8 products of about 1
    np.testing.assert_allclose(array(embedding.project(x)), expected, atol=1e-5)


def test_untied_projection_has_a_matrix_of_its_own(randomize):
    embedding = TokenAndPositionEmbedding(
        **SIZES, position_embedding="none", tie_embeddings=False
    )
    embedding.build((None, None))
    tokens, projection = embedding.trainable_variables
    # drawn apart: the first numbers of the two are not the same
    assert np.abs(array(tokens).ravel() - array(projection).ravel()).max() > 1e-3
    randomize(embedding)
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32")
    expected = x @ array(projection)
    np.testing.assert_allclose(array(embedding.project(x)), expected, atol=1e-5)


def test_logits_are_float32_and_multiplied_in_half_precision():
    embedding = TokenAndPositionEmbedding(**SIZES, dtype="mixed_bfloat16")
    x = embedding(IDS)
    assert keras.backend.standardize_dtype(x.dtype) == "bfloat16"
    logits = embedding.project(x)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    in_half = array(ops.cast(ops.cast(logits, "bfloat16"), "float32"))
    np.testing.assert_array_equal(array(logits), in_half)


def test_dropout_acts_only_in_training():
    embedding = TokenAndPositionEmbedding(**SIZES, dropout_rate=0.5)
    ids = np.zeros((50, 6), "int32")
    still = array(embedding(ids))
    np.testing.assert_array_equal(array(embedding(ids, training=False)), still)
    dropped = array(embedding(ids, training=True))
    # 2,400 draws: a standard deviation of 0.01
    assert np.mean(dropped == 0) == pytest.approx(0.5, abs=0.05)
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * still[kept], rtol=1e-6)


def test_a_sequence_of_the_whole_context_fits_and_a_longer_one_does_not():
    embedding = TokenAndPositionEmbedding(**SIZES)
    assert tuple(embedding(np.zeros((1, 6), "int32")).shape) == (1, 6, 8)
    with pytest.raises(ValueError, match="7 tokens, context_length=6"):
        embedding(np.zeros((1, 7), "int32"))


def test_an_unknown_position_embedding_is_named():
    with pytest.raises(ValueError, match="position_embedding='absolute'"):
        TokenAndPositionEmbedding(**SIZES, position_embedding="absolute")


@pytest.mark.parametrize(
    "ids",
    [
        [5, 6, 0, 7, 8, 9],
        [0, 0, 5, 0, 6, 7],
        [5, 6, 7, 8, 9, 0],
        [5, 6, 7, 8, 9, 1],
        [0, 0, 0, 0, 0, 0],
        [5],
    ],
)
def test_documents_count_separators_before_and_positions_since(ids):
    segment = position = 0
    expected_segments, expected_positions = [], []
    for token in ids:
        expected_segments.append(segment)
        expected_positions.append(position)
        position += 1
        if token == 0:
            segment, position = segment + 1, 0
    # a row beside it that has other documents
    both = np.array([ids, [0] * len(ids)])
    segments, positions = DocumentPositions(0)(both)
    assert array(segments)[0].tolist() == expected_segments
    assert array(positions)[0].tolist() == expected_positions


def test_document_positions_keep_their_separator_in_the_config():
    layer = DocumentPositions(3, name="documents")
    copy = DocumentPositions.from_config(layer.get_config())
    ids = np.array([[1, 3, 0, 2, 3, 1]])
    for ours, theirs in zip(layer(ids), copy(ids), strict=True):
        np.testing.assert_array_equal(array(ours), array(theirs))
