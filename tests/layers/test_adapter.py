import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt.layers import LowRankAdapter
from keras_gpt.layers.adapter import Adapters, RowAdapters

pytestmark = pytest.mark.every_backend

ARGUMENTS = {"units": 6, "rank": 3, "alpha": 12, "dropout_rate": 0.5}
X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")


def array(x):
    return np.array(ops.convert_to_numpy(ops.cast(x, "float32")))


@pytest.fixture
def make(randomize):
    """A function: a built adapter with random weights."""

    def make_adapter(**arguments):
        adapter = LowRankAdapter(**{**ARGUMENTS, **arguments})
        adapter.build(X.shape)
        randomize(adapter)
        return adapter

    return make_adapter


def test_output_equals_the_product_by_numpy(make):
    adapter = make()
    product = 12 / 3 * array(adapter.down) @ array(adapter.up)
    # float32 sums of 8 and 3 products of about 1
    np.testing.assert_allclose(array(adapter(X)), X @ product, atol=1e-5)
    np.testing.assert_allclose(adapter.product(), product, atol=1e-6)
    assert adapter.compute_output_shape(X.shape) == (2, 5, 6)


def test_each_row_of_a_batch_has_its_own_adapter_or_none(randomize):
    adapters = Adapters()
    adapters.ranks = {"one": 3, "two": 1}
    layer = RowAdapters(6, rank=4)
    layer.build(X.shape)
    randomize(layer)
    down, up = array(layer.down), array(layer.up)
    x, y = X[[0, 1, 0]], ops.ones((3, 5, 6))
    with adapters.of_rows(ops.convert_to_tensor([2, 0, 1])):
        output = array(layer.add_to(y, x))
    assert not layer.trainable_variables
    # as above
    np.testing.assert_allclose(output[0] - 1, X[0] @ down[:, 3:] @ up[3:], atol=1e-5)
    np.testing.assert_array_equal(output[1], array(y)[1])
    np.testing.assert_allclose(output[2] - 1, X[0] @ down[:, :3] @ up[:3], atol=1e-5)
    assert layer.add_to(y, x) is y


def test_alpha_is_the_rank_unless_given(make):
    adapter = make(alpha=None)
    expected = X @ array(adapter.down) @ array(adapter.up)
    np.testing.assert_allclose(array(adapter(X)), expected, atol=1e-5)  # as above


def test_it_starts_from_orthonormal_columns_and_zeros():
    adapter = LowRankAdapter(6, rank=3)
    assert not array(adapter(X)).any()
    down = array(adapter.down)
    np.testing.assert_allclose(down.T @ down, np.eye(3), atol=1e-6)  # float32


def test_columns_follow_the_seed():
    columns = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        adapter = LowRankAdapter(6, rank=3)
        adapter.build(X.shape)
        columns.append(array(adapter.down))
    np.testing.assert_array_equal(columns[0], columns[1])
    assert np.abs(columns[0] - columns[2]).max() > 0.1


def test_the_scale_is_a_weight_that_does_not_train(make):
    adapter = make()
    assert [v.name for v in adapter.trainable_variables] == ["down", "up"]
    adapter.scale.assign(0.0)
    assert not array(adapter(X)).any()


def test_dropout_acts_in_training_alone(make):
    adapter = make()
    np.testing.assert_array_equal(array(adapter(X)), array(adapter(X, training=False)))
    dropped = array(adapter(X, training=True))
    assert np.abs(dropped - array(adapter(X))).max() > 0.1
    assert np.abs(dropped - array(adapter(X, training=True))).max() > 0.1


def test_dropped_inputs_leave_the_expected_output(make):
    adapter = make()
    x = ops.repeat(ops.convert_to_tensor(X[:1]), 4000, axis=0)
    outputs = array(adapter(x, training=True))
    # the mean of 4000 values scatters by 1/63 of their deviation: 5 of those
    tolerance = 5 * outputs.std(axis=0).max() / 4000**0.5
    mean = outputs.mean(axis=0)
    np.testing.assert_allclose(mean, array(adapter(X[:1]))[0], atol=tolerance)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_weights_stay_float32_in_half_precision(make, dtype):
    adapter = make(dtype=dtype)
    assert {str(weight.dtype) for weight in adapter.weights} == {"float32"}
    output = adapter(X)
    assert keras.backend.standardize_dtype(output.dtype) == dtype[6:]
    # 8 bits of factors, and of sums of some dozens of products
    exact = array(make()(X))
    tolerance = 0.02 * np.abs(exact).max()
    np.testing.assert_allclose(array(output), exact, atol=tolerance)


def test_config_round_trip_keeps_every_argument():
    adapter = LowRankAdapter(**ARGUMENTS, name="mine", dtype="mixed_bfloat16")
    config = adapter.get_config()
    assert {name: config[name] for name in ARGUMENTS} == ARGUMENTS
    copy = LowRankAdapter.from_config(config)
    assert copy.get_config() == config
    assert (copy.name, copy.dtype_policy.name) == ("mine", "mixed_bfloat16")


def test_a_saved_adapter_computes_the_same_when_loaded(make, tmp_path):
    inputs = keras.Input((None, 8))
    adapter = make()
    model = keras.Model(inputs, adapter(inputs))
    model.save(tmp_path / "adapter.keras")
    loaded = keras.saving.load_model(tmp_path / "adapter.keras")
    np.testing.assert_array_equal(array(loaded(X)), array(model(X)))


@pytest.mark.parametrize("rank", [0, 9])
def test_a_rank_that_the_input_has_no_room_for_is_refused(rank):
    message = f"`rank` must be from 1 to 8, the width.*Received: rank={rank}"
    with pytest.raises(ValueError, match=message):
        LowRankAdapter(6, rank=rank).build(X.shape)
