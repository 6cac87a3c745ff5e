"""What holds for each layer: configuration, saving, precision and causality."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt.layers import (
    CausalSelfAttention,
    FeedForward,
    TokenAndPositionEmbedding,
    TransformerBlock,
)
from keras_gpt.layers.base import Dropout

pytestmark = pytest.mark.every_backend

LAYERS = {
    "embedding": (
        TokenAndPositionEmbedding,
        {
            "vocab_size": 11,
            "context_length": 6,
            "embedding_dimension": 8,
            "position_embedding": "sinusoidal",
            "tie_embeddings": False,
            "dropout_rate": 0.1,
        },
    ),
    "attention": (
        CausalSelfAttention,
        {
            "num_heads": 4,
            "num_kv_heads": 2,
            "attention_dimension": 16,
            "dropout_rate": 0.1,
            "use_bias": False,
            "query_key_value_bias": True,
            "qk_norm": True,
            "norm_epsilon": 1e-3,
            "sliding_window": 4,
        },
    ),
    "feed_forward": (
        FeedForward,
        {
            "feed_forward_dimension": 12,
            "activation": "swiglu",
            "use_bias": False,
            "dropout_rate": 0.1,
        },
    ),
    "block": (
        TransformerBlock,
        {"normalization": "rms_norm", "norm_epsilon": 1e-3, "use_bias": False},
    ),
}


@pytest.fixture(params=LAYERS)
def kind(request):
    return request.param


def make(kind, dtype=None, **kwargs):
    layer_class, arguments = LAYERS[kind]
    parts = {}
    if kind == "block":
        names = ("kernel_initializer", "residual_initializer")
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        parts = {
            part: LAYERS[part][0](
                **LAYERS[part][1],
                **{name: value.clone() for name, value in given.items()},
                dtype=dtype,
            )
            for part in ("attention", "feed_forward")
        }
    return layer_class(**parts, **arguments, dtype=dtype, **kwargs)


def make_input(kind, t=6):
    random = np.random.default_rng(0)
    if kind == "embedding":
        return random.integers(11, size=(2, t), dtype="int32")
    return random.normal(size=(2, t, 8)).astype("float32")


def array(x):
    return np.array(ops.convert_to_numpy(ops.cast(x, "float32")))


def test_config_round_trip_keeps_every_argument(kind):
    layer_class, arguments = LAYERS[kind]
    layer = make(kind, name="mine", dtype="mixed_bfloat16", trainable=False)
    config = layer.get_config()
    assert {name: config[name] for name in arguments} == arguments
    copy = layer_class.from_config(config)
    assert copy.get_config() == config
    assert (copy.name, copy.trainable) == ("mine", False)
    assert copy.dtype_policy.name == "mixed_bfloat16"


def test_initializers_survive_the_config(kind):
    layer_class, _ = LAYERS[kind]
    names = (
        ["embeddings_initializer"]
        if kind == "embedding"
        else ["kernel_initializer", "residual_initializer"]
    )
    ones = keras.initializers.Constant(0.5)
    layer = make(kind, **dict.fromkeys(names, ones))
    copy = layer_class.from_config(layer.get_config())
    copy.build((None, None) if kind == "embedding" else (None, None, 8))
    matrices = [w for w in copy.trainable_variables if len(w.shape) == 2]
    assert matrices
    for matrix in matrices:
        np.testing.assert_array_equal(array(matrix), 0.5)


def test_a_saved_layer_computes_the_same_when_loaded(kind, tmp_path, randomize):
    x = make_input(kind)
    inputs = keras.Input((None, *x.shape[2:]), dtype=x.dtype)
    layer = make(kind)
    model = keras.Model(inputs, layer(inputs))
    randomize(layer)
    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras")
    np.testing.assert_array_equal(array(loaded(x)), array(model(x)))


@pytest.mark.parametrize(
    ("policy", "compute", "variable"),
    [
        ("mixed_bfloat16", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_dtype_policy_is_honoured(kind, policy, compute, variable, randomize):
    x = make_input(kind)
    exact = make(kind)
    half = make(kind, dtype=policy)
    exact.build(x.shape)
    half.build(x.shape)
    randomize(exact, 0.3)
    randomize(half, 0.3)
    expected, output = array(exact(x)), half(x)
    assert keras.backend.standardize_dtype(output.dtype) == compute
    for weight in half.trainable_variables:
        assert keras.backend.standardize_dtype(weight.dtype) == variable
    # bfloat16 keeps 8 bits, 0.4%; some roundings after one another
    tolerance = 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(array(output), expected, atol=tolerance)


def test_no_output_depends_on_a_later_token(kind, randomize):
    layer = make(kind)
    x = make_input(kind)
    layer.build(x.shape)
    randomize(layer)
    before = array(layer(x))
    for t in range(1, 6):
        changed = x.copy()
        changed[:, t:] = (changed[:, t:] + 3) % 11
        after = array(layer(changed))
        # bit for bit: a weight of 0 times a finite value adds nothing
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.all(np.any(after[:, t] != before[:, t], axis=-1))


def test_one_token_is_a_sequence(kind, randomize):
    layer = make(kind)
    x = make_input(kind)
    layer.build(x.shape)
    randomize(layer)
    # a warning would be an error; the sums may be done in another order
    np.testing.assert_allclose(
        array(layer(x[:, :1])), array(layer(x))[:, :1], atol=1e-4
    )


def test_output_shape_is_known_before_the_call(kind):
    x = make_input(kind)
    layer = make(kind)
    spec = layer.compute_output_spec(keras.KerasTensor((None, None, *x.shape[2:])))
    assert spec.shape == (None, None, 8)
    assert tuple(layer(x).shape) == (2, 6, 8)


def test_no_two_matrices_start_alike(kind):
    names = (
        ["embeddings_initializer"]
        if kind == "embedding"
        else ["kernel_initializer", "residual_initializer"]
    )
    normal = keras.initializers.RandomNormal
    layer = make(kind, **{name: normal(stddev=0.5) for name in names})
    layer.build((None, None) if kind == "embedding" else (None, None, 8))
    kernels = [array(w).ravel() for w in layer.trainable_variables if len(w.shape) == 2]
    for i, one in enumerate(kernels):
        for other in kernels[:i]:
            common = min(len(one), len(other))
            correlation = np.corrcoef(one[:common], other[:common])[0, 1]
            # 64 or more pairs: a standard deviation of 0.125 at most
            assert abs(correlation) < 0.6


def test_dropout_drops_each_element_at_its_rate_whatever_it_dropped_elsewhere():
    layer, ones = Dropout(0.3, seed=1), ops.ones((64, 32, 33))
    first, second = (
        ops.convert_to_numpy(layer(ones, training=True)).astype("float64")
        for _ in range(2)
    )
    np.testing.assert_allclose(np.unique(first), [0, 1 / 0.7], rtol=1e-6)
    pairs = [(first, second)]
    pairs += [(first[n:], first[:-n]) for n in (1, 32)]
    pairs += [(first[:, n:], first[:, :-n]) for n in (1, 16)]
    pairs += [(first[:, :, n:], first[:, :, :-n]) for n in (1, 2, 16)]
    for one, other in pairs:  # means and products of independent draws are normal
        deviation = np.sqrt(one.size * 0.3 / 0.7)
        assert abs(np.sum(one - 1)) < 5 * deviation
        product = np.sum((one - 1) * (other - 1))
        assert abs(product) < 5 * np.sqrt(one.size) * 0.3 / 0.7


def test_dropout_drops_the_same_on_every_backend():
    layer = Dropout(0.3, seed=7)
    layer(ops.ones(2), training=True)
    size = 3 * 50_001
    kept = ops.convert_to_numpy(layer(ops.ones((3, 50_001)), training=True)) > 0

    def mix(x):
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    start = mix(7 ^ mix(1 ^ 0x9E3779B9))  # of the seed's second draw
    pairs = np.arange(-(-size // 2), dtype="uint64")
    hashes = mix((start + pairs * (mix(start) | 1)) % 2**32)
    bits = np.stack([hashes % 2**16, hashes >> 16], axis=1).ravel()[:size]
    np.testing.assert_array_equal(kept.ravel(), bits >= int(0.3 * 2**16))
