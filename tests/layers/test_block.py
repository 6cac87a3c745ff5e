import dataclasses

import numpy as np
import pytest
from keras import ops

from keras_gpt import GPT, GPTConfig
from keras_gpt.layers import CausalSelfAttention, FeedForward, TransformerBlock

pytestmark = pytest.mark.every_backend


def array(x):
    return np.array(ops.convert_to_numpy(x), "float64")


def layer_norm(x, weights, epsilon):
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / np.sqrt(x.var(-1, keepdims=True) + epsilon) * weights[0]
    return scaled + weights[1] if len(weights) > 1 else scaled


def rms_norm(x, weights, epsilon):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + epsilon) * weights[0]


NORMS = {"layer_norm": layer_norm, "rms_norm": rms_norm}


def make_block(attention=None, **arguments):
    return TransformerBlock(
        attention or CausalSelfAttention(2), FeedForward(), **arguments
    )


@pytest.mark.parametrize("normalization", NORMS)
@pytest.mark.parametrize("use_bias", [True, False])
def test_each_branch_reads_what_is_normalized_and_adds(
    normalization, use_bias, randomize
):
    block = make_block(normalization=normalization, use_bias=use_bias, norm_epsilon=0.1)
    block.build((None, None, 8))
    randomize(block)
    x = np.random.default_rng(0).normal(size=(2, 5, 8))

    def normalized(norm, x):
        weights = [array(weight) for weight in norm.weights]
        assert len(weights) == 1 + (use_bias and normalization == "layer_norm")
        return NORMS[normalization](x, weights, 0.1).astype("float32")

    # the two branches are tested by themselves
    expected = x + array(block.attention(normalized(block.attention_norm, x)))
    middle = normalized(block.feed_forward_norm, expected)
    expected = expected + array(block.feed_forward(middle))
    output = array(block(x.astype("float32")))
    # float32 against float64
    np.testing.assert_allclose(output, expected, atol=2e-5 * np.abs(expected).max())


def test_scores_are_those_of_the_attention(randomize):
    block = make_block(CausalSelfAttention(2, sliding_window=2))
    block.build((None, None, 8))
    randomize(block)
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    output, scores = block(x, return_attention_scores=True)
    expected = block.attention(block.attention_norm(x), return_attention_scores=True)
    np.testing.assert_array_equal(array(scores), array(expected[1]))
    # the same sums; the scores may need another kernel
    np.testing.assert_allclose(array(output), array(block(x)), atol=1e-4)


def test_every_option_of_the_architecture_reaches_a_layer():
    config = GPTConfig(
        vocab_size=11,
        context_length=6,
        embedding_dimension=8,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        attention_dimension=16,
        feed_forward_dimension=20,
        dropout_rate=0.1,
        position_embedding="rotary",
        rotary_base=100.0,
        rotary_scaling={"type": "linear", "factor": 2.0},
        normalization="rms_norm",
        norm_epsilon=1e-3,
        activation="swiglu",
        use_bias=False,
        query_key_value_bias=True,
        tie_embeddings=False,
        qk_norm=True,
        sliding_window=2,
        document_separator_id=3,
    )
    model = GPT(config)
    [block] = model.blocks
    layers = [model.embedding, model.documents, model.rotary, model.logits]
    layers += [block, block.attention, block.feed_forward]
    fields = config.to_dict()
    for field in dataclasses.fields(config):
        assert fields[field.name] != field.default  # or it could not be told
    reached = {"num_layers"}
    for layer in layers:
        arguments = layer.get_config()
        shared = set(arguments) & set(fields)
        reached |= shared
        assert {n: arguments[n] for n in shared} == {n: fields[n] for n in shared}
    assert reached == set(fields)


def test_an_unknown_normalization_is_named():
    with pytest.raises(ValueError, match="normalization='batch_norm'"):
        make_block(normalization="batch_norm")
