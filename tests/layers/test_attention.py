import numpy as np
import pytest
from keras import ops

from keras_gpt.layers import CausalSelfAttention, RotaryAngles

pytestmark = pytest.mark.every_backend

SEGMENTS = np.array([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]])


def array(x):
    return np.array(ops.convert_to_numpy(x), "float64")


def rms_normalized(x, gain, epsilon):
    return x / np.sqrt(np.mean(x**2) + epsilon) * gain


def rotated(x, position, base):
    """`x` as complex numbers, whose halves are value i and value i + h / 2."""
    half = len(x) // 2
    turns = np.exp(1j * position * base ** (-np.arange(half) / half))
    turned = (x[:half] + 1j * x[half:]) * turns
    return np.concatenate([turned.real, turned.imag])


def find_angles(base, h, positions):
    """What turns queries and keys in places `positions`, `None` without a base."""
    return RotaryAngles(h, rotary_base=base)(positions, positions) if base else None


def reference(layer, x, base=None, segment_ids=None, positions=None):
    """Head by head and token by token, in float64: output and attention scores."""
    config = layer.get_config()
    n, k = config["num_heads"], config["num_kv_heads"] or config["num_heads"]
    b, t, e = x.shape
    h = e // n
    kernel = array(layer.query_key_value.kernel)
    bias = array(layer.query_key_value.bias) if config["use_bias"] else 0
    fused = x @ kernel + bias
    queries, keys, values = np.split(fused, [n * h, (n + k) * h], axis=-1)
    scores = np.zeros((b, n, t, t))
    context = np.zeros((b, t, e))
    for row in range(b):
        for head in range(n):
            shared = slice(head // (n // k) * h, (head // (n // k) + 1) * h)
            query = queries[row, :, head * h : (head + 1) * h].copy()
            key = keys[row, :, shared].copy()
            for i in range(t):
                position = i if positions is None else positions[row, i]
                if config["qk_norm"]:
                    epsilon = config["norm_epsilon"]
                    gains = array(layer.query_norm.scale), array(layer.key_norm.scale)
                    query[i] = rms_normalized(query[i], gains[0], epsilon)
                    key[i] = rms_normalized(key[i], gains[1], epsilon)
                if base:
                    query[i] = rotated(query[i], position, base)
                    key[i] = rotated(key[i], position, base)
            for i in range(t):
                first = max(0, i + 1 - (config["sliding_window"] or t))
                seen = [
                    j
                    for j in range(first, i + 1)
                    if segment_ids is None or segment_ids[row, i] == segment_ids[row, j]
                ]
                weights = np.exp([query[i] @ key[j] / np.sqrt(h) for j in seen])
                scores[row, head, i, seen] = weights / weights.sum()
            context[row, :, head * h : (head + 1) * h] = (
                scores[row, head] @ values[row, :, shared]
            )
    output = context @ array(layer.output_projection.kernel)
    if config["use_bias"]:
        output = output + array(layer.output_projection.bias)
    return output, scores


ALL_AT_ONCE = {
    "num_kv_heads": 2,
    "use_bias": False,
    "qk_norm": True,
    "sliding_window": 2,
}


@pytest.mark.parametrize(
    ("arguments", "base", "packed"),
    [
        ({}, None, False),
        ({}, None, True),
        ({"use_bias": False}, None, False),
        ({"num_kv_heads": 2}, None, False),
        ({"num_kv_heads": 1}, None, False),
        ({"sliding_window": 3}, None, False),
        ({"sliding_window": 1}, None, False),
        ({"qk_norm": True, "norm_epsilon": 0.1}, None, False),
        ({}, 100.0, False),
        ({}, 100.0, True),
        (ALL_AT_ONCE, 10000.0, False),
        (ALL_AT_ONCE, 10000.0, True),
    ],
    ids=str,
)
def test_output_and_scores_are_those_of_numpy(arguments, base, packed, randomize):
    layer = CausalSelfAttention(4, **arguments)
    layer.build((None, None, 16))
    randomize(layer)
    x = np.random.default_rng(0).normal(size=(2, 6, 16))
    packing = {"segment_ids": SEGMENTS, "positions": POSITIONS} if packed else {}
    expected, expected_scores = reference(layer, x, base, **packing)
    x = x.astype("float32")
    positions = packing.pop("positions", np.arange(6)[None])
    packing["angles"] = find_angles(base, 4, positions)
    output, scores = layer(x, return_attention_scores=True, **packing)
    # float32 against float64; scores before the softmax reach about 20
    tolerance = 2e-5 * np.abs(expected).max()
    np.testing.assert_allclose(array(output), expected, atol=tolerance)
    np.testing.assert_allclose(array(scores), expected_scores, atol=2e-5)
    # the way that need not return scores may be another kernel
    np.testing.assert_allclose(array(layer(x, **packing)), expected, atol=tolerance)


@pytest.mark.parametrize(
    ("arguments", "base"),
    [({"num_kv_heads": 2, "qk_norm": True}, 100.0), ({"sliding_window": 3}, None)],
    ids=str,
)
def test_decoding_against_the_cache_equals_the_whole_sequence(
    arguments, base, randomize
):
    layer = CausalSelfAttention(4, **arguments)
    layer.build((None, None, 16))
    randomize(layer)
    x = np.random.default_rng(0).normal(size=(2, 6, 16)).astype("float32")
    places = np.tile(np.arange(6, dtype="int32"), (2, 1))
    whole = array(layer(x, find_angles(base, 4, places)))
    angles = find_angles(base, 4, places[:, :3])
    output, cache = layer.prefill(x[:, :3], cache_length=8, angles=angles)
    assert [part.shape[2] for part in cache] == [8, 8]
    np.testing.assert_allclose(array(output), whole[:, :3], atol=1e-4)
    for t in range(3, 6):
        position = ops.convert_to_tensor(places[:, t : t + 1])
        angles = find_angles(base, 4, places[:, t : t + 1])
        output, cache = layer.decode(x[:, t : t + 1], cache, position, angles)
        # the same float32 sums in another order; outputs are about 10
        np.testing.assert_allclose(array(output), whole[:, t : t + 1], atol=1e-4)


def test_rows_decode_at_places_of_their_own(randomize):
    layer = CausalSelfAttention(4)
    layer.build((None, None, 16))
    randomize(layer)
    x = np.random.default_rng(0).normal(size=(2, 6, 16)).astype("float32")
    whole = array(layer(x, find_angles(100.0, 4, np.arange(6)[None])))
    # row 0 has read 5 tokens and row 1 only 2: what follows them is padding
    angles = find_angles(100.0, 4, np.arange(5)[None])
    _, cache = layer.prefill(x[:, :5], cache_length=8, angles=angles)
    places = np.array([[5], [2]], "int32")
    new = np.stack([x[0, 5:6], x[1, 2:3]])
    position = ops.convert_to_tensor(places)
    output, _ = layer.decode(new, cache, position, find_angles(100.0, 4, places))
    np.testing.assert_allclose(array(output)[0, 0], whole[0, 5], atol=1e-4)
    np.testing.assert_allclose(array(output)[1, 0], whole[1, 2], atol=1e-4)


def test_dropout_takes_whole_weights_and_output_values():
    # One token has one weight, 1; value and output projections are identities
    layer = CausalSelfAttention(4, dropout_rate=0.5, use_bias=False)
    layer.build((None, None, 8))
    layer.query_key_value.kernel.assign(np.tile(np.eye(8, dtype="float32"), 3))
    layer.output_projection.kernel.assign(np.eye(8, dtype="float32"))
    x = np.ones((1000, 1, 8), "float32")
    np.testing.assert_allclose(array(layer(x, training=False)), x, rtol=1e-6)
    output = array(layer(x, training=True)).reshape(1000, 4, 2)
    # kept by both with probability 1/4, and doubled by both
    np.testing.assert_allclose(np.unique(output), [0, 4], rtol=1e-6)
    # standard deviations over 4,000 heads are below 0.008
    assert np.mean(output != 0) == pytest.approx(1 / 4, abs=0.04)
    # a head's weight drops all its values: 1/2 + 1/2 * 1/4 (apart: 9/16)
    assert np.mean(np.all(output == 0, axis=-1)) == pytest.approx(5 / 8, abs=0.035)


def test_queries_and_keys_are_not_normalized_unless_asked():
    plain, normalized = CausalSelfAttention(4), CausalSelfAttention(4, qk_norm=True)
    for layer in (plain, normalized):
        layer.build((None, None, 8))
    assert [w.shape for w in plain.weights] == [(8, 24), (24,), (8, 8), (8,)]
    assert len(normalized.weights) == len(plain.weights) + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "`num_heads` must divide.*Try num_heads=2"),
        ({"num_heads": 4, "num_kv_heads": 3}, "`num_kv_heads` must divide.*Try"),
    ],
)
def test_heads_that_do_not_divide_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CausalSelfAttention(**arguments).build((None, None, 16))
