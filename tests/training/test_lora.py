import gc
import json
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import keras_gpt
from keras_gpt import training
from keras_gpt.generation.programs import trace_counts
from keras_gpt.training.lora import (
    ADAPTER_FILE,
    LORA_TARGETS,
    WEIGHTS_FILE,
    base_sample,
)

LLAMA = {
    "num_kv_heads": 1,
    "position_embedding": "rotary",
    "normalization": "rms_norm",
    "activation": "swiglu",
    "use_bias": False,
    "tie_embeddings": False,
}
PROMPT = [1, 2, 3]
JIT = keras.backend.backend() == "jax"  # others compile longer than they run


def array(x):
    return np.array(ops.convert_to_numpy(ops.cast(x, "float32")))


def arrays(variables):
    return [array(variable) for variable in variables]


def assert_identical(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def logits(model, batch, **kwargs):
    return array(model(batch[0], **kwargs))


def enlarge(model):
    """Give a base weights with which its text doesn't repeat one token."""
    random = np.random.default_rng(3)
    for weight in model.trainable_variables:
        weight.assign(random.normal(scale=0.4, size=weight.shape).astype("float32"))


def fill(model, seed=0, scale=0.1):
    """Give the adapters the values of a seed, as if they had been trained."""
    random = np.random.default_rng(seed)
    for adapter in model.adapters.layers:
        values = random.normal(scale=scale, size=adapter.up.shape)
        adapter.up.assign(values.astype("float32"))


def fit(model, batch, epochs=1, **kwargs):
    """One batch an epoch; returns the losses."""
    kwargs = {"batch_size": 8, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(*batch, epochs=epochs, **kwargs).history["loss"]


def loss_of(model, batch):
    """The mean cross-entropy, by NumPy."""
    scores = logits(model, batch).astype("float64")
    chosen = np.take_along_axis(scores, batch[1][..., None], axis=-1)[..., 0]
    return (np.log(np.exp(scores).sum(axis=-1)) - chosen).mean()


def greedy(model):
    [new] = keras_gpt.generate(model, [PROMPT], max_new_tokens=5, temperature=0)
    return new


def greedy_by_hand(model):
    """The likeliest token by a whole forward pass, five times."""
    ids = list(PROMPT)
    for _ in range(5):
        padded = np.array([ids + [0] * (8 - len(ids))])  # one shape to compile
        ids.append(int(array(model(padded))[0, len(ids) - 1].argmax()))
    return ids[len(PROMPT) :]


def kernels(model):
    return [
        array(layer.kernel)
        for block in model.blocks
        for part in (block.attention, block.feed_forward)
        for layer in (getattr(part, name, None) for name in LORA_TARGETS)
        if layer is not None
    ]


@pytest.fixture
def make_tuned(make_model):
    """A function: a base with adapters as if they had been trained."""

    def make(seed=0, *, lora=None, **fields):
        model = make_model(**fields)
        training.enable_lora(model, **{"rank": 2, **(lora or {})})
        fill(model, seed)
        return model

    return make


@pytest.mark.every_backend
@pytest.mark.parametrize("fields", [{}, LLAMA])
def test_fresh_adapters_change_nothing_and_are_all_that_trains(
    make_model, compile_model, batch, fields
):
    model = make_model(**fields)
    before, frozen = logits(model, batch), list(model.weights)
    frozen_values = arrays(frozen)
    training.enable_lora(model, rank=2)
    np.testing.assert_array_equal(logits(model, batch), before)
    adapters = [w for a in model.adapters.layers for w in (a.down, a.up)]
    assert {id(w) for w in model.trainable_variables} == {id(w) for w in adapters}
    adapter_values = arrays(adapters)
    compile_model(model, 1e-2)
    losses = fit(model, batch, epochs=3)
    assert losses[-1] < losses[0]
    assert_identical(arrays(frozen), frozen_values)
    for old, new in zip(adapter_values, arrays(adapters), strict=True):
        assert np.all(old != new)


def test_parameters_and_bytes_are_counted(make_model):
    # kernels of 16 x 48, 16 x 16, 16 x 64 and 64 x 16
    model = make_model(dtype="bfloat16")
    base = training.count_trainable(model)
    assert base["trainable"] == base["parameters"]
    assert base["weight_bytes"] == 2 * base["parameters"]
    training.enable_lora(model, rank=2)
    counts = training.count_trainable(model)
    assert counts["trainable"] == 2 * (16 + 48 + 16 + 16 + 16 + 64 + 64 + 16)
    assert counts["training_bytes"] == 12 * counts["trainable"]


@pytest.mark.every_backend
def test_gradients_do_not_add_up_over_steps(make_model, batch):
    # PyTorch's do, for weights that Keras doesn't know of
    model = make_model()
    model.compile(keras.optimizers.SGD(1e-4), jit_compile=JIT)
    fit(model, batch)
    training.enable_lora(model, rank=2)
    model.compile(keras.optimizers.SGD(1e-4), jit_compile=JIT)
    values = [np.zeros(model.adapters.layers[0].up.shape)]
    for _ in range(2):
        fit(model, batch)
        values.append(array(model.adapters.layers[0].up))
    # the weights have hardly changed
    np.testing.assert_allclose(
        values[2] - values[1], values[1], atol=1e-3 * np.abs(values[1]).max()
    )


@pytest.mark.every_backend
def test_at_full_rank_the_first_step_is_that_of_full_training(make_model, batch):
    # every matrix then has 16 rows
    fields = {"feed_forward_dimension": 16}
    full, model = make_model(**fields), make_model(**fields)
    start = kernels(full)
    training.enable_lora(model, rank=16, alpha=32)
    for trained in (full, model):
        trained.compile(keras.optimizers.SGD(1.0), jit_compile=JIT)
        fit(trained, batch)
    training.merge_lora(model)
    for old, expected, merged in zip(start, kernels(full), kernels(model), strict=True):
        step, lora_step = (expected - old).ravel(), (merged - old).ravel()
        norms = np.linalg.norm(step), np.linalg.norm(lora_step)
        # float32: the steps are differences of larger numbers
        assert step @ lora_step / np.prod(norms) > 1 - 1e-6
        # once for the gradient and once for the product: (alpha / rank) squared
        assert norms[1] / norms[0] == pytest.approx(4, rel=1e-4)


@pytest.mark.every_backend
@pytest.mark.parametrize("fields", [{}, LLAMA])
@pytest.mark.parametrize("targets", [LORA_TARGETS, ("down_projection",)])
def test_merged_equals_unmerged(make_tuned, batch, fields, targets):
    model = make_tuned(lora={"targets": targets}, **fields)
    adapted = logits(model, batch)
    with training.without_lora(model):
        assert np.abs(logits(model, batch) - adapted).max() > 0.01
    training.merge_lora(model)
    # float32: logits of about 1
    np.testing.assert_allclose(logits(model, batch), adapted, atol=1e-5)


@pytest.mark.every_backend
def test_generation_follows_adapters_as_they_come_and_go(make_model, tmp_path):
    model = make_model(**LLAMA)
    enlarge(model)
    base = greedy(model)
    assert base == greedy_by_hand(model)
    training.enable_lora(model, rank=2)
    assert greedy(model) == base
    fill(model, scale=1.0)
    adapted = greedy(model)
    assert adapted == greedy_by_hand(model) != base
    training.save_adapter(model, tmp_path / "one")
    with training.without_lora(model):
        assert greedy(model) == base
    assert greedy(model) == adapted
    adapter = weakref.ref(model.adapters.variables[0])
    training.remove_lora(model)
    assert greedy(model) == base
    gc.collect()
    assert adapter() is None  # programs that read it went with it
    training.load_adapter(model, tmp_path / "one")
    assert greedy(model) == adapted
    training.merge_lora(model)
    assert greedy(model) == adapted


@pytest.mark.every_backend
def test_predict_follows_adapters_as_they_come_and_go(make_model, batch):
    model = make_model()

    def check():
        predicted = model.predict(batch[0], verbose=0)
        # compiled and not: float32 sums in another order
        np.testing.assert_allclose(predicted, logits(model, batch), atol=1e-5)
        return predicted

    base = check()
    training.enable_lora(model, rank=2)
    fill(model)
    adapted = check()
    assert np.abs(adapted - base).max() > 0.01
    with training.without_lora(model):
        np.testing.assert_array_equal(model.predict(batch[0], verbose=0), base)
    training.remove_lora(model)
    np.testing.assert_array_equal(check(), base)
    training.enable_lora(model, rank=2)
    fill(model)
    check()
    training.merge_lora(model)
    check()


def test_removed_adapters_leave_the_model_as_it_was(make_model, make_tuned, batch):
    base, model = make_model(), make_tuned()
    training.remove_lora(model)
    assert not training.has_lora(model)
    np.testing.assert_array_equal(logits(model, batch), logits(base, batch))
    for name in ("weights", "trainable_variables", "variables"):
        left, right = getattr(model, name), getattr(base, name)
        assert [v.path for v in left] == [v.path for v in right]


@pytest.mark.parametrize("end", [training.remove_lora, training.merge_lora])
def test_what_was_frozen_before_stays_frozen(make_model, end):
    model = make_model(num_layers=2)
    model.blocks[0].trainable = False
    model.embedding.trainable = False
    model.blocks[1].feed_forward.up_projection.bias.trainable = False
    before = [v.path for v in model.trainable_variables]
    training.enable_lora(model, rank=2)
    assert len(model.trainable_variables) == 2 * len(model.adapters.layers) == 16
    end(model)
    assert [v.path for v in model.trainable_variables] == before


def test_adapters_go_from_a_model_that_was_quantized_meanwhile(make_tuned):
    model = make_tuned()
    model.quantize("int8")
    training.remove_lora(model)
    kernel = model.blocks[0].feed_forward.up_projection.kernel
    assert not kernel.trainable
    assert model.final_norm.trainable_variables


def test_a_base_of_fewer_bits_is_refused_before_it_trains(
    make_model, make_tuned, tmp_path
):
    training.save_adapter(make_tuned(), tmp_path)
    model = make_model()
    model.quantize(config=keras.quantizers.Int4QuantizationConfig(block_size=16))
    message = "float32, bfloat16 or int8. Received: int4 weights. Quantize to int8"
    with pytest.raises(ValueError, match=message):
        training.enable_lora(model)
    with pytest.raises(ValueError, match=message):
        training.load_adapter(model, tmp_path)
    assert not training.has_lora(model)


def test_a_merged_model_is_saved_whole_and_trains_whole(
    make_model, make_tuned, compile_model, batch, tmp_path
):
    model = make_tuned()
    with pytest.raises(ValueError, match="merge_lora"):
        model.save(tmp_path / "model.keras")
    training.merge_lora(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(logits(loaded, batch), logits(model, batch))
    assert len(model.trainable_variables) == len(make_model().trainable_variables)
    compile_model(model, 1e-2)
    losses = fit(model, batch, epochs=2)
    assert losses[1] < losses[0]


def test_the_loss_falls_over_rounded_bases_as_in_float32(
    make_model, compile_model, batch
):
    losses = {}
    batches = [np.tile(part, (20, 1)) for part in batch]
    for base in ("float32", "bfloat16", "mixed_bfloat16", "int8"):
        model = make_model(dtype=None if base == "int8" else base)
        enlarge(model)
        if base == "int8":
            model.quantize("int8")
        training.enable_lora(model, rank=4)
        stored = {str(w.dtype) for a in model.adapters.layers for w in a.weights}
        assert stored == {"float32"}
        compile_model(model, 2e-2)
        before = loss_of(model, batch)
        fit(model, batches)
        losses[base] = loss_of(model, batch)
        assert losses[base] < before - 0.5
        # 8 bits of weights and activations
        assert losses[base] == pytest.approx(losses["float32"], abs=0.02)
    # of int8, which reads its weights by a function of its own
    assert len(greedy(model)) == 5


@pytest.mark.every_backend
def test_small_steps_are_not_lost_in_bfloat16(make_model, batch):
    model = make_model(dtype="bfloat16")
    training.enable_lora(model, rank=4)
    # 1e-4 of a value of 1 is 30 times less than bfloat16 tells apart
    model.compile(keras.optimizers.Adam(1e-4), jit_compile=JIT)
    fill(model)
    before = array(model.adapters.layers[0].up)
    fit(model, batch)
    assert np.all(array(model.adapters.layers[0].up) != before)


def test_merging_into_bfloat16_rounds_the_weights_alone(make_tuned, batch):
    model = make_tuned(dtype="bfloat16")
    adapted = logits(model, batch)
    training.merge_lora(model)
    # 8 bits of weights and activations, logits of about 1
    np.testing.assert_allclose(logits(model, batch), adapted, atol=0.05)
    assert {str(w.dtype) for w in model.weights} == {"bfloat16"}


def test_merging_into_int8_is_refused(make_model, batch):
    model = make_model()
    model.quantize("int8")
    training.enable_lora(model, rank=2)
    fill(model)
    adapted = logits(model, batch)
    with pytest.raises(ValueError, match="can't be merged into int8 weights"):
        training.merge_lora(model)
    np.testing.assert_array_equal(logits(model, batch), adapted)
    training.remove_lora(model)
    assert np.abs(logits(model, batch) - adapted).max() > 0.01


@pytest.mark.every_backend
def test_dropout_acts_in_training_alone_and_repeats_with_its_seed(make_tuned, batch):
    models = [make_tuned(lora={"dropout_rate": 0.5}) for _ in range(2)]
    plain = logits(make_tuned(), batch)
    dropped = [logits(model, batch, training=True) for model in models]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - plain).max() > 0.01
    again = logits(models[0], batch, training=True)
    assert np.abs(again - dropped[0]).max() > 0.01
    np.testing.assert_array_equal(logits(models[0], batch), plain)


def test_fit_drops_and_repeats_with_its_seed(make_tuned, batch):
    ends = []
    for rate in (0.5, 0.5, 0.0):
        model = make_tuned(lora={"dropout_rate": rate})
        model.compile(keras.optimizers.SGD(0.1), jit_compile=JIT)
        fit(model, batch, epochs=2)
        ends.append(arrays(model.trainable_variables))
    assert_identical(ends[0], ends[1])
    assert all(np.any(a != b) for a, b in zip(ends[0], ends[2], strict=True))


@pytest.mark.every_backend
def test_a_saved_adapter_comes_back(make_model, make_tuned, batch, tmp_path):
    settings = {"rank": 2, "alpha": 3.0, "targets": ["up_projection"]}
    model = make_tuned(lora=settings)
    training.save_adapter(model, tmp_path / "a", about={"base": "hf://some/base"})
    other = make_model()
    about = training.load_adapter(other, tmp_path / "a")
    assert about["base"] == "hf://some/base"
    assert {name: about[name] for name in settings} == settings
    assert other.adapters.settings == model.adapters.settings
    np.testing.assert_array_equal(logits(other, batch), logits(model, batch))


def test_files_hold_adapters_alone_as_any_backend_reads_them(make_tuned, tmp_path):
    from safetensors.numpy import load_file

    model = make_tuned()
    training.save_adapter(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {ADAPTER_FILE, WEIGHTS_FILE}
    stored = load_file(tmp_path / WEIGHTS_FILE)
    np.testing.assert_array_equal(stored.pop("base_sample"), base_sample(model))
    adapters = model.adapters.layers
    assert set(stored) == {f"{a.name}.{w}" for a in adapters for w in ("down", "up")}
    for adapter in adapters:
        np.testing.assert_array_equal(stored[f"{adapter.name}.up"], array(adapter.up))
        assert stored[f"{adapter.name}.down"].dtype == np.float32
    # names and shapes, and the sample of the base
    size = 4 * training.count_trainable(model)["trainable"]
    assert (tmp_path / WEIGHTS_FILE).stat().st_size < size + 2000


@pytest.mark.every_backend
def test_adapters_take_turns_with_one_base_without_another_compilation(
    make_tuned, make_model, batch, tmp_path
):
    expected = []
    for seed in range(3):
        tuned = make_tuned(seed)
        training.save_adapter(tuned, tmp_path / str(seed))
        expected.append(logits(tuned, batch))
    model = make_model()
    training.load_adapter(model, tmp_path / "0")
    greedy(model)
    counts = dict(trace_counts)
    for seed in (1, 2, 0, 1):
        training.load_adapter(model, tmp_path / str(seed))
        np.testing.assert_array_equal(logits(model, batch), expected[seed])
        text = greedy(model)
        if keras.backend.backend() != "torch":  # which compiles nothing
            assert trace_counts == counts
        counts = dict(trace_counts)
        assert text == greedy_by_hand(model)


def test_an_adapter_of_another_shape_replaces_the_one_before(
    make_tuned, batch, tmp_path
):
    tuned = make_tuned(lora={"rank": 3, "targets": LORA_TARGETS[1:3]})
    training.save_adapter(tuned, tmp_path)
    model = make_tuned(1)
    training.load_adapter(model, tmp_path)
    np.testing.assert_array_equal(logits(model, batch), logits(tuned, batch))
    assert len(model.trainable_variables) == len(tuned.trainable_variables)


@pytest.mark.parametrize(
    ("seed", "fields", "message"),
    [
        (0, {"num_layers": 2}, "its architecture is another"),
        (1, {}, "its weights differ by"),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    make_model, make_tuned, tmp_path, seed, fields, message
):
    training.save_adapter(make_tuned(), tmp_path)
    model = make_model(seed, **fields)
    with pytest.raises(ValueError, match=f"another base: {message}.*adapter.json"):
        training.load_adapter(model, tmp_path)
    assert not training.has_lora(model)


@pytest.mark.parametrize("base", ["bfloat16", "int8"])
def test_a_rounded_base_is_the_same_base(make_model, make_tuned, batch, tmp_path, base):
    tuned = make_tuned()
    training.save_adapter(tuned, tmp_path)
    model = make_model(dtype="bfloat16" if base == "bfloat16" else None)
    if base == "int8":
        model.quantize("int8")
    training.load_adapter(model, tmp_path)
    # 8 bits of weights and activations, logits of about 1
    np.testing.assert_allclose(logits(model, batch), logits(tuned, batch), atol=0.1)
    training.save_adapter(model, tmp_path / "back")
    training.load_adapter(make_model(), tmp_path / "back")


def test_a_base_that_keeps_documents_apart_is_the_same_base(
    make_model, make_tuned, tmp_path
):
    tuned = make_tuned(document_separator_id=0)
    training.save_adapter(tuned, tmp_path)
    training.load_adapter(make_model(), tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.999])
def test_a_truncated_adapter_is_refused(make_model, make_tuned, tmp_path, kept):
    training.save_adapter(make_tuned(), tmp_path)
    path = tmp_path / WEIGHTS_FILE
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    model = make_model()
    with pytest.raises(ValueError, match=r"adapter\.safetensors can't be read.*copy"):
        training.load_adapter(model, tmp_path)
    assert not training.has_lora(model)


def test_a_flipped_byte_is_noticed_and_adapters_without_checksum_are_read(
    make_model, make_tuned, tmp_path
):
    training.save_adapter(make_tuned(), tmp_path)
    path = tmp_path / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    model = make_model()
    with pytest.raises(ValueError, match=r"adapter\.safetensors is damaged.*checksum"):
        training.load_adapter(model, tmp_path)
    assert not training.has_lora(model)
    about = json.loads((tmp_path / ADAPTER_FILE).read_text())
    del about["checksum"]  # as before there was one
    (tmp_path / ADAPTER_FILE).write_text(json.dumps(about))
    training.load_adapter(model, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 1', "adapter.json is not valid JSON.*truncated"),
        ("[1]", "adapter.json wasn't written by this version"),
        ('{"format": 2}', "adapter.json wasn't written by this version"),
        ('{"format": 1, "rank": 2}', "adapter.json wasn't written by this version"),
        ("null", "adapter.json wasn't written by this version"),
        (
            '{"format": 1, "model": {}, "rank": 2, "alpha": 4, "dropout_rate": 0, '
            '"targets": ["head"]}',
            "adapter.json wasn't written by this version",
        ),
    ],
)
def test_a_damaged_description_is_refused(make_model, tmp_path, content, message):
    (tmp_path / ADAPTER_FILE).write_text(content)
    with pytest.raises(ValueError, match=message):
        training.load_adapter(make_model(), tmp_path)


def test_a_language_model_needs_an_adapter_that_names_its_base(make_tuned, tmp_path):
    training.save_adapter(make_tuned(), tmp_path)
    with pytest.raises(ValueError, match=r"adapter\.json wasn't written by"):
        keras_gpt.LanguageModel.load(tmp_path)


def test_files_that_are_missing_are_named(make_model, make_tuned, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no adapter.*adapter\.json is missing"
    ):
        training.load_adapter(make_model(), tmp_path)
    training.save_adapter(make_tuned(), tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(ValueError, match=r"adapter\.safetensors can't be read"):
        training.load_adapter(make_model(), tmp_path)


def test_files_of_two_adapters_are_refused(make_model, make_tuned, tmp_path):
    training.save_adapter(make_tuned(), tmp_path)
    path = tmp_path / ADAPTER_FILE
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "rank": 3}))
    with pytest.raises(ValueError, match=r"doesn't belong to the adapter\.json"):
        training.load_adapter(make_model(), tmp_path)


def test_without_lora_a_model_is_its_base_exactly(make_model, make_tuned, batch):
    base, model = make_model(), make_tuned()
    adapted = logits(model, batch)
    with training.without_lora(model):
        np.testing.assert_array_equal(logits(model, batch), logits(base, batch))
    np.testing.assert_array_equal(logits(model, batch), adapted)
    with pytest.raises(KeyboardInterrupt), training.without_lora(model):
        raise KeyboardInterrupt
    np.testing.assert_array_equal(logits(model, batch), adapted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "`rank` must be a positive integer. Received: rank=0"),
        ({"rank": 1.5}, "`rank` must be a positive integer. Received: rank=1.5"),
        ({"rank": 17}, "`rank` must be from 1 to 16, the width.*rank=17"),
        ({"alpha": 0}, "`alpha` must be above 0. Received: alpha=0"),
        ({"targets": ["keys"]}, r"`targets` must be some of query_.*\['keys'\]"),
        ({"targets": []}, "`targets` must be some of"),
        ({"targets": ["up_projection"] * 2}, "each once"),
        ({"dropout_rate": 1.0}, "`dropout_rate` must be at least 0 and below 1"),
        ({"dropout_rate": -0.1}, "`dropout_rate`.*Received: dropout_rate=-0.1"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(make_model, arguments, message):
    model = make_model()
    before = len(model.trainable_variables)
    with pytest.raises(ValueError, match=message):
        training.enable_lora(model, **arguments)
    assert not training.has_lora(model)
    assert len(model.trainable_variables) == before


def test_what_needs_adapters_or_none_says_so(make_model, make_tuned, tmp_path):
    model = make_tuned()
    with pytest.raises(ValueError, match=r"has adapters already\. Call merge_lora"):
        training.enable_lora(model)
    model = make_model()
    for function in (training.merge_lora, training.remove_lora):
        with pytest.raises(ValueError, match=r"has no adapters\. Call .*enable_lora"):
            function(model)
    with pytest.raises(ValueError, match="has no adapters"):
        training.save_adapter(model, tmp_path)
    with (
        pytest.raises(ValueError, match="has no adapters"),
        training.without_lora(model),
    ):
        pass


def test_a_resumed_run_equals_one_never_stopped_bit_for_bit(
    make_model, compile_model, batch, tmp_path
):
    def make(seed):
        # the same base, other adapters and dropout
        model = make_model()
        keras.utils.set_random_seed(seed)
        training.enable_lora(model, rank=2, dropout_rate=0.3)
        compile_model(model, 1e-2, total_steps=4)
        return model

    def values(model):
        return arrays([*model.variables, *model.optimizer.variables])

    save = training.callbacks.SaveState(tmp_path / "state.npz", 1)
    whole = make(0)
    fit(whole, batch, 2, callbacks=[save])
    fit(whole, batch, 4, initial_epoch=2)
    resumed = make(1)
    assert training.load_state(resumed, tmp_path / "state.npz") == 2
    fit(resumed, batch, 4, initial_epoch=2)
    assert_identical(values(resumed), values(whole))


def test_a_state_holds_adapters_and_seeds_but_not_the_base(
    make_tuned, compile_model, batch, tmp_path
):
    model = make_tuned(lora={"dropout_rate": 0.3})
    compile_model(model)
    fit(model, batch)
    training.save_state(model, tmp_path / "state.npz", 1)
    with np.load(tmp_path / "state.npz") as stored:
        names = [n for n in stored.files if not n.startswith(("step", "metric"))]
        found = [stored[name] for name in names]
    seeds = [v for v in model.variables if "seed" in v.path]
    assert len(seeds) >= len(model.adapters.layers)
    expected = [*model.trainable_variables, *seeds, *model.optimizer.variables]
    assert sum(a.size for a in found) == sum(np.prod(v.shape) for v in expected)
    assert len(found) == len(expected)
