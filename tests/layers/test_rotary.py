import numpy as np
import pytest
from keras import ops

from keras_gpt.layers.rotary import RotaryAngles, apply_rotary, rotary_frequencies


def find_angles(positions, width, base=10000.0, scaling=None):
    layer = RotaryAngles(width, rotary_base=base, rotary_scaling=scaling)
    return layer(np.zeros((1, positions.shape[-1]), "int32"), positions)


def rotate(x, positions, base=10000.0):
    angles = find_angles(positions, x.shape[-1], base)
    return ops.convert_to_numpy(apply_rotary(ops.convert_to_tensor(x), angles))


@pytest.mark.every_backend
@pytest.mark.parametrize("base", [10000.0, 500.0])
def test_rotation_is_that_of_llama(base):
    # `rotate_half` and the doubled frequencies, as Transformers writes them
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype("float32")
    positions = np.array([[0, 1, 2, 3, 4], [7, 0, 1, 100, 3]])
    inverse = 1.0 / base ** (np.arange(0, 8, 2) / 8)
    angles = positions[..., None] * inverse
    angles = np.concatenate([angles, angles], axis=-1)[:, :, None]
    rotated_half = np.concatenate([-x[..., 4:], x[..., :4]], axis=-1)
    expected = x * np.cos(angles) + rotated_half * np.sin(angles)
    # float32 angles of up to 100 are known to 4e-6
    np.testing.assert_allclose(rotate(x, positions, base), expected, atol=2e-5)


@pytest.mark.every_backend
def test_position_0_is_unchanged():
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 6)).astype("float32")
    np.testing.assert_array_equal(rotate(x, np.array([0])), x)


@pytest.mark.every_backend
def test_products_depend_on_the_distance_alone():
    random = np.random.default_rng(0)
    query, key = random.normal(size=(2, 1, 1, 1, 16)).astype("float32")

    def product(query_position, key_position):
        rotated_query = rotate(query, np.array([query_position]))
        return np.sum(rotated_query * rotate(key, np.array([key_position])))

    # float32: sums of 16 products of about 1, angles known to 1e-5
    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-2


@pytest.mark.every_backend
def test_positions_count_from_0_unless_given():
    layer = RotaryAngles(8)
    counted = layer(np.zeros((2, 5), "int32"))
    given = layer(np.zeros((2, 5), "int32"), np.arange(5))
    for one, other in zip(counted, given, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        )


@pytest.mark.every_backend
def test_linear_scaling_stretches_the_positions():
    scaling = {"type": "linear", "factor": 4.0}
    stretched = find_angles(np.array([8]), 16, 100.0, scaling)
    plain = find_angles(np.array([2]), 16, 100.0)
    for one, other in zip(stretched, plain, strict=True):
        # float32 angles
        np.testing.assert_allclose(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other), atol=1e-6
        )


def test_llama_scaling_keeps_fast_and_divides_slow_frequencies():
    scaling = {
        "type": "llama3",
        "factor": 8.0,
        "low_frequency_factor": 1.0,
        "high_frequency_factor": 4.0,
        "original_context_length": 8192,
    }
    plain = rotary_frequencies(128, 5e5)
    scaled = rotary_frequencies(128, 5e5, scaling)
    turns = 8192 * plain / (2 * np.pi)
    np.testing.assert_array_equal(scaled[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert np.all(scaled[between] < plain[between])
    assert np.all(scaled[between] > plain[between] / 8)
