import resource
import shutil

import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt.training import load_state, save_state
from keras_gpt.training.callbacks import SaveState

RECIPES = {
    "adamw": {"total_steps": 4, "accumulation_steps": 2, "ema_momentum": 0.9},
    "muon": {"recipe": "fast", "total_steps": 8, "warmup_steps": 2},
    "float16": {"dtype": "mixed_float16"},
}


def values_of(model):
    """Everything that a later step depends on."""
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(ops.convert_to_numpy(variable)) for variable in variables]


def assert_identical(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def prepare(make_model, compile_model):
    """A function: a model with dropout, compiled as a recipe says."""

    def make(recipe, seed):
        recipe = dict(recipe)
        model = make_model(seed, dropout_rate=0.3, dtype=recipe.pop("dtype", None))
        compile_model(model, 1e-2, **recipe)
        return model

    return make


def fit(model, batch, path, epochs, initial_epoch=0):
    """Two batches an epoch, and the state after each epoch in a file of its own."""
    model.fit(
        *batch,
        batch_size=4,
        epochs=epochs,
        initial_epoch=initial_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[
            SaveState(path / "state.npz", 2),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: shutil.copy(
                    path / "state.npz", path / f"{epoch + 1}.npz"
                )
            ),
        ],
    )


@pytest.mark.parametrize(
    "name",
    # the first has the most parts; the others differ in what Keras does
    [
        pytest.param(name, marks=[pytest.mark.every_backend] * (i == 0))
        for i, name in enumerate(RECIPES)
    ],
)
def test_a_resumed_run_equals_one_never_stopped_bit_for_bit(
    prepare, batch, tmp_path, name
):
    whole = prepare(RECIPES[name], 0)
    fit(whole, batch, tmp_path, 4)
    resumed = prepare(RECIPES[name], 1)  # other weights and dropout than those saved
    assert load_state(resumed, tmp_path / "2.npz") == 4
    (tmp_path / "again").mkdir()
    fit(resumed, batch, tmp_path / "again", 4, initial_epoch=2)
    assert_identical(values_of(resumed), values_of(whole))


def test_a_state_from_before_tokens_were_counted_is_read(prepare, batch, tmp_path):
    written = prepare(RECIPES["adamw"], 0)
    fit(written, batch, tmp_path, 1)
    with np.load(tmp_path / "1.npz") as file:
        arrays = dict(file)
    last = max(name for name in arrays if name.isdigit())
    assert arrays.pop(last) > 0
    np.savez(tmp_path / "old.npz", **arrays)
    read = prepare(RECIPES["adamw"], 1)
    assert load_state(read, tmp_path / "old.npz") == 2
    assert_identical(values_of(read)[:-1], values_of(written)[:-1])


@pytest.mark.every_backend
def test_dropout_seeds_are_part_of_the_state(prepare, batch, tmp_path):
    model = prepare({}, 0)
    fit(model, batch, tmp_path, 1)
    seeds = [v for v in model.variables if "seed" in v.path]
    assert seeds
    after = [np.array(ops.convert_to_numpy(seed)) for seed in seeds]
    for seed in seeds:
        seed.assign(np.zeros(seed.shape, "uint32"))
    load_state(model, tmp_path / "state.npz")
    assert_identical([np.array(ops.convert_to_numpy(s)) for s in seeds], after)


@pytest.mark.every_backend
def test_bfloat16_weights_come_back_exactly(compile_model, make_model, tmp_path):
    model = make_model(0, dtype="bfloat16")
    compile_model(model)
    model.optimizer.build(model.trainable_variables)
    save_state(model, tmp_path / "state.npz", 3)
    other = make_model(1, dtype="bfloat16")
    compile_model(other)
    assert load_state(other, tmp_path / "state.npz") == 3
    for a, b in zip(model.variables, other.variables, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(
            ops.convert_to_numpy(ops.cast(a, "float32")),
            ops.convert_to_numpy(ops.cast(b, "float32")),
        )


@pytest.mark.parametrize(
    ("fields", "recipe"),
    [
        ({"num_layers": 2}, {}),  # more variables
        ({"context_length": 9}, {}),  # another shape
        ({}, {"optimizer": "muon"}),
        ({}, {"ema_momentum": 0.9}),
    ],
)
def test_the_state_of_another_run_is_refused_and_changes_nothing(
    compile_model, make_model, tmp_path, fields, recipe
):
    model = make_model()
    compile_model(model)
    model.optimizer.build(model.trainable_variables)
    save_state(model, tmp_path / "state.npz", 1)
    other = make_model(1, **fields)
    compile_model(other, **recipe)
    other.optimizer.build(other.trainable_variables)
    before = values_of(other)
    with pytest.raises(ValueError, match=r"state\.npz is the state of another model"):
        load_state(other, tmp_path / "state.npz")
    assert_identical(values_of(other), before)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_state_is_refused(compile_model, make_model, tmp_path, kept):
    model = make_model()
    compile_model(model)
    model.optimizer.build(model.trainable_variables)
    path = tmp_path / "state.npz"
    save_state(model, path, 1)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"state\.npz can't be read.*truncated"):
        load_state(model, path)


def test_a_file_that_is_no_state_is_refused_by_name(
    compile_model, make_model, tmp_path
):
    model = make_model()
    compile_model(model)
    path = tmp_path / "state.npz"
    path.write_text("not a state")
    with pytest.raises(ValueError, match=r"state\.npz can't be read"):
        load_state(model, path)


def test_a_changed_byte_is_noticed_or_changes_nothing(
    compile_model, make_model, tmp_path
):
    model = make_model()
    compile_model(model)
    model.optimizer.build(model.trainable_variables)
    path = tmp_path / "state.npz"
    save_state(model, path, 7)
    before, whole = values_of(model), path.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    places = [*range(0, 140, 3), *range(140, directory, 997)]
    places += range(directory, len(whole), 61)
    refused = 0
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 + place % 255
        path.write_bytes(content)
        try:
            assert load_state(model, path) == 7
        except ValueError:
            refused += 1
    assert_identical(values_of(model), before)
    assert refused > len(places) / 2


def test_a_full_disk_leaves_the_old_state(compile_model, make_model, tmp_path):
    model = make_model()
    compile_model(model)
    model.optimizer.build(model.trainable_variables)
    path = tmp_path / "state.npz"
    save_state(model, path, 1)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_state(model, path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]
