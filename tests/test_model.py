import itertools
import math
import warnings

import grain
import keras
import numpy as np
import pytest
from keras import ops

import keras_gpt
from keras_gpt import GPT, GPTConfig
from keras_gpt.loss import TokenCrossentropy
from keras_gpt.training.lora import LORA_TARGETS

SIZES = {
    "vocab_size": 11,
    "context_length": 12,
    "embedding_dimension": 16,
    "num_layers": 2,
    "num_heads": 4,
}
LLAMA = {
    "num_kv_heads": 2,
    "feed_forward_dimension": 24,
    "position_embedding": "rotary",
    "rotary_base": 100.0,
    "normalization": "rms_norm",
    "activation": "swiglu",
    "use_bias": False,
    "tie_embeddings": False,
}
# Together they hold every choice of every field
VARIANTS = {
    "gpt2": {"activation": "gelu_tanh"},
    "llama": LLAMA,
    "llama31": {
        **LLAMA,
        "rotary_scaling": {
            "type": "llama3",
            "factor": 4.0,
            "low_frequency_factor": 1.0,
            "high_frequency_factor": 3.0,
            "original_context_length": 12,
        },
    },
    "qwen2": {
        **LLAMA,
        "query_key_value_bias": True,
        "rotary_scaling": {"type": "linear", "factor": 2.0},
    },
    "qwen3": {
        **LLAMA,
        "attention_dimension": 24,
        "qk_norm": True,
        "tie_embeddings": True,
        "norm_epsilon": 1e-3,
    },
    "mistral": {**LLAMA, "sliding_window": 3, "num_kv_heads": 1},
    "original": {"position_embedding": "sinusoidal", "dropout_rate": 0.1},
    "packed": {
        "document_separator_id": 0,
        "activation": "relu_squared",
        "use_bias": False,
        "tie_embeddings": False,
    },
    "no_positions": {
        **LLAMA,
        "position_embedding": "none",
        "document_separator_id": 3,
        "sliding_window": 4,
        "use_bias": True,
    },
}
IDS = np.array([[5, 1, 7, 0, 2, 3, 3, 10, 9], [0, 8, 2, 2, 6, 3, 1, 4, 0]])


def make_model(variant="gpt2", scale=0.3, sizes=(), **kwargs):
    """A model whose weights are large enough for its logits to differ."""
    config = GPTConfig(**{**SIZES, **VARIANTS[variant], **dict(sizes)})
    model = GPT(config, **kwargs)
    random = np.random.default_rng(1)
    for variable in model.trainable_variables:
        values = random.normal(scale=scale, size=variable.shape)
        variable.assign(values.astype("float32"))
    return model


def array(x):
    return np.array(ops.convert_to_numpy(x))


# A GPT in plain NumPy, float64, one row at a time


def normalized(x, norm, config):
    gain, *bias = (array(weight).astype("float64") for weight in norm.weights)
    if config.normalization == "rms_norm":
        return (
            x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_epsilon) * gain
        )
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_epsilon)
    return x * gain + (bias[0] if bias else 0)


def linear(x, dense):
    kernel, *bias = (array(weight).astype("float64") for weight in dense.weights)
    return x @ kernel + (bias[0] if bias else 0)


def activated(x, activation):
    if activation == "swiglu":
        gate, up = np.split(x, 2, -1)
        return gate / (1 + np.exp(-gate)) * up
    if activation == "relu_squared":
        return np.maximum(x, 0) ** 2
    if activation == "gelu":
        return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def rotated(x, positions, config):
    half = x.shape[-1] // 2
    angles = config.rotary_base ** (-np.arange(half) / half)
    scaling = config.rotary_scaling
    if scaling is not None and scaling["type"] == "linear":
        angles = angles / 2
    elif scaling is not None:
        # as Transformers writes it
        length = 2 * np.pi / angles
        kept = np.clip((12 / length - 1) / (3 - 1), 0, 1)
        angles = (1 - kept) * angles / 4 + kept * angles
    turns = np.exp(1j * positions[:, None] * angles)
    turned = (x[:, :half] + 1j * x[:, half:]) * turns
    return np.concatenate([turned.real, turned.imag], -1)


def attended(x, attention, config, positions, segments):
    n, k = config.num_heads, config.num_kv_heads or config.num_heads
    h = config.head_dimension
    fused = linear(x, attention.query_key_value).reshape(len(x), n + 2 * k, h)
    scores = []
    context = np.zeros((len(x), n, h))
    for head in range(n):
        query = fused[:, head]
        key = fused[:, n + head // (n // k)]
        value = fused[:, n + k + head // (n // k)]
        if config.qk_norm:
            query = normalized(query, attention.query_norm, config)
            key = normalized(key, attention.key_norm, config)
        if config.position_embedding == "rotary":
            query = rotated(query, positions, config)
            key = rotated(key, positions, config)
        weights = np.exp(query @ key.T / np.sqrt(h))
        for i in range(len(x)):
            for j in range(len(x)):
                far = config.sliding_window and i - j >= config.sliding_window
                if j > i or far or segments[i] != segments[j]:
                    weights[i, j] = 0
        scores.append(weights / weights.sum(-1, keepdims=True))
        context[:, head] = scores[-1] @ value
    return linear(context.reshape(len(x), n * h), attention.output_projection), scores


def reference(model, ids):
    """Logits `(t, v)` and attention scores `(layers, heads, t, t)` of one row."""
    config = model.config
    ids = np.asarray(ids)
    positions, segments = [], []
    position = segment = 0
    for token in ids:
        positions.append(position)
        segments.append(segment)
        position += 1
        if token == config.document_separator_id:
            position, segment = 0, segment + 1
    positions = np.array(positions)
    tokens = array(model.embedding.embedding_matrix).astype("float64")
    x = tokens[ids]
    if config.position_embedding == "learned":
        x = x + array(model.embedding.positions.embeddings)[positions]
    if config.position_embedding == "sinusoidal":
        pairs = np.arange(config.embedding_dimension) // 2
        angles = positions[:, None] / 10000 ** (2 * pairs / config.embedding_dimension)
        is_odd = np.arange(config.embedding_dimension) % 2
        x = x + np.where(is_odd, np.cos(angles), np.sin(angles))
    all_scores = []
    for block in model.blocks:
        norm = normalized(x, block.attention_norm, config)
        added, scores = attended(norm, block.attention, config, positions, segments)
        all_scores.append(scores)
        x = x + added
        norm = normalized(x, block.feed_forward_norm, config)
        hidden = linear(norm, block.feed_forward.up_projection)
        x = x + linear(
            activated(hidden, config.activation), block.feed_forward.down_projection
        )
    x = normalized(x, model.final_norm, config)
    if not config.tie_embeddings:
        return x @ array(model.embedding.tokens.reverse_embeddings), all_scores
    return x @ tokens.T, all_scores


@pytest.mark.every_backend
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_scores_are_those_of_numpy(variant):
    model = make_model(variant)
    expected, expected_scores = zip(
        *(reference(model, row) for row in IDS), strict=True
    )
    logits = model(IDS)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    # float32 against float64
    np.testing.assert_allclose(
        array(logits), expected, atol=1e-5 * np.abs(expected).max()
    )
    scores = model.attention_scores(IDS)
    expected_scores = np.array(expected_scores).transpose(1, 0, 2, 3, 4)
    assert scores.shape == (2, 2, 4, 9, 9)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)  # 9 float32 weights
    assert not np.triu(scores, 1).any()


@pytest.mark.every_backend
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_and_every_weight_moves(variant):
    model = make_model(variant)
    # plain gradient descent: what has no gradient stays
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    before = [array(variable) for variable in model.trainable_variables]
    loss = model.train_on_batch(IDS[:, :-1], IDS[:, 1:])
    assert np.isfinite(loss)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.all(np.isfinite(array(variable))), variable.path
        assert np.any(array(variable) != old), variable.path


@pytest.mark.every_backend
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_fit_with_the_defaults_lowers_the_loss(dtype):
    model = GPT(GPTConfig(**{**SIZES, **LLAMA}), dtype=dtype)
    model.compile()
    logits = model(IDS)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    history = model.fit(
        np.tile(IDS[:, :-1], (16, 1)),
        np.tile(IDS[:, 1:], (16, 1)),
        batch_size=2,
        epochs=3,
        verbose=0,
    )
    first, *_, last = history.history["loss"]
    # it begins near log(11) = 2.4; two rows are soon known by heart
    assert last < first - 0.3
    assert last < 2.0
    for variable in model.trainable_variables:
        assert keras.backend.standardize_dtype(variable.dtype) == "float32"


@pytest.mark.every_backend
def test_float16_scales_its_loss():
    # small gradients are 0 in float16 otherwise
    model = GPT(GPTConfig(**SIZES), dtype="mixed_float16")
    model.compile()
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


@pytest.mark.every_backend
def test_padding_with_weight_0_does_not_count():
    model = make_model()
    model.compile()
    weights = np.array([[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]], "float32")
    inputs, targets = IDS[:, :-1], IDS[:, 1:]
    loss = model.evaluate(inputs, targets, sample_weight=weights, verbose=0)
    logits = array(model(inputs)).astype("float64")
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    # float32 mean of 8 values
    assert loss == pytest.approx(-np.sum(chosen * weights) / weights.sum(), rel=1e-5)


@pytest.mark.every_backend
@pytest.mark.parametrize("variant", ["gpt2", "mistral", "no_positions"])
def test_no_logits_depend_on_a_later_token(variant):
    model = make_model(variant)
    before = array(model(IDS))
    for t in (1, 4, 8):
        changed = IDS.copy()
        changed[:, t:] = (changed[:, t:] + 1) % 11
        after = array(model(changed))
        # bit for bit: a weight of 0 times a finite value adds nothing
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.all(np.any(after[:, t] != before[:, t], axis=-1))


@pytest.mark.every_backend
@pytest.mark.parametrize("position_embedding", ["learned", "rotary"])
def test_packed_documents_equal_each_alone(position_embedding):
    config = GPTConfig(
        **SIZES, position_embedding=position_embedding, document_separator_id=0
    )
    model = GPT(config)
    model.set_weights([5 * weight for weight in model.get_weights()])
    documents = [[5, 1, 7, 0], [0], [3, 3, 10, 9]]
    packed = array(model(np.array([list(itertools.chain(*documents))])))[0]
    start = 0
    for document in documents:
        alone = array(model(np.array([document])))[0]
        there = packed[start : start + len(document)]
        # masked places add exact zeros; the rest is summed in another order
        np.testing.assert_allclose(there, alone, atol=1e-5 * np.abs(alone).max())
        start += len(document)


def test_a_separator_belongs_to_the_document_that_it_ends():
    model = make_model("packed")
    ids = np.array([[5, 1, 7, 0, 2, 3, 4]])
    before = array(model(ids))[0]
    changed = ids.copy()
    changed[0, 0] = 6
    after = array(model(changed))[0]
    assert np.all(np.any(after[:4] != before[:4], axis=-1))
    # bit for bit: nothing of the first document is seen
    np.testing.assert_array_equal(after[4:], before[4:])


@pytest.mark.every_backend
@pytest.mark.parametrize("variant", ["gpt2", "qwen3", "packed"])
def test_a_saved_model_is_the_same_when_loaded(variant, tmp_path):
    model = make_model(variant, name="mine")
    if variant == "gpt2":  # its compiled programs must not get in the way
        keras_gpt.generate(model, [[1, 2]], max_new_tokens=1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, GPT)
    assert loaded.config == model.config
    assert loaded.name == "mine"
    np.testing.assert_array_equal(array(loaded(IDS)), array(model(IDS)))
    model.save_weights(tmp_path / "model.weights.h5")
    other = make_model(variant, scale=0.1)
    assert np.any(array(other(IDS)) != array(model(IDS)))
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(array(other(IDS)), array(model(IDS)))


def test_dtype_policy_is_saved(tmp_path):
    model = make_model(dtype="mixed_bfloat16")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.embedding.compute_dtype == "bfloat16"
    np.testing.assert_array_equal(array(loaded(IDS)), array(model(IDS)))


@pytest.mark.every_backend
def test_the_global_dtype_policy_is_the_default():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = GPT(GPTConfig(**SIZES))
    finally:
        keras.config.set_dtype_policy(before)
    assert model.blocks[0].attention.compute_dtype == "bfloat16"
    assert keras.backend.standardize_dtype(model(IDS).dtype) == "float32"


@pytest.mark.every_backend
def test_a_compiled_model_goes_on_training_when_loaded(tmp_path):
    model = make_model()
    model.compile(optimizer=keras.optimizers.AdamW(0.01))
    model.train_on_batch(IDS[:, :-1], IDS[:, 1:])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 1
    expected = model.train_on_batch(IDS[:, :-1], IDS[:, 1:])
    loss = loaded.train_on_batch(IDS[:, :-1], IDS[:, 1:])
    np.testing.assert_array_equal(loss, expected)
    for ours, theirs in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(array(ours), array(theirs))


def count_bytes(model):
    return sum(
        math.prod(v.shape) * (1 if v.dtype == "int8" else 4) for v in model.weights
    )


@pytest.mark.every_backend
@pytest.mark.parametrize("variant", ["gpt2", "llama"])
@pytest.mark.parametrize(
    # int8 rounds weights to 1/127 of the largest of their column, int4 to 1/30 of the
    # range of 32; scales and norms are float32
    ("weights", "change", "size"),
    [("int8", 0.05, 0.5), ("int4", 0.35, 0.4)],
)
def test_few_bits_change_logits_little_and_are_saved(
    variant, weights, change, size, tmp_path
):
    model = make_model(variant, sizes={"embedding_dimension": 32})
    size *= count_bytes(model)
    ids = np.array([[1, 2, 3, 4, 5]])
    before = array(model(ids))
    model.quantize(weights)
    after = array(model(ids))
    assert np.abs(after - before).max() < change * np.abs(before).max()
    assert np.any(after != before)
    assert count_bytes(model) < size
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.quantization == weights
    np.testing.assert_array_equal(array(loaded(ids)), after)


@pytest.mark.parametrize(("variant", "last"), [("gpt2", "int4"), ("llama", "int8")])
def test_int8_is_what_int4_has_no_groups_for(variant, last):
    model = make_model(variant, sizes={"embedding_dimension": 32})
    model.quantize("int4")
    projections = model.projections(LORA_TARGETS).values()
    kinds = [dense.quantization_mode for dense in projections]
    assert kinds == ["int4", "int4", "int4", last] * 2
    assert model.embedding.tokens.quantization_mode == "int8"


def test_int4_groups_may_be_larger_and_must_fit():
    config = keras.quantizers.Int4QuantizationConfig(block_size=16)
    model = make_model()
    with pytest.raises(ValueError, match=r"groups of 32.*Received: 16.*'int8'"):
        model.quantize("int4")
    model.quantize(config=config)
    assert model.blocks[0].attention.query_key_value.kernel_scale.shape == (1, 48)


def test_a_truncated_file_is_an_error(tmp_path):
    path = tmp_path / "model.keras"
    make_model().save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises((ValueError, OSError)):
        keras.saving.load_model(path)


def test_weights_start_as_those_of_gpt2():
    config = GPTConfig(
        **{**SIZES, "vocab_size": 200, "embedding_dimension": 64, "num_layers": 8},
        tie_embeddings=False,
    )
    model = GPT(config)
    for variable in model.trainable_variables:
        values = array(variable)
        if variable.path.endswith(("/bias", "/beta")):
            assert not values.any(), variable.path
        elif variable.path.endswith(("/gamma", "/scale")):
            assert np.all(values == 1), variable.path
        else:
            is_residual = variable.path.endswith(
                ("output_projection/kernel", "down_projection/kernel")
            )
            std = 0.02 / np.sqrt(2 * 8) if is_residual else 0.02
            # of 768 or more draws the standard deviation is known to 2.6%
            assert values.std() == pytest.approx(std, rel=0.1), variable.path
            assert abs(values.mean()) < 0.15 * std, variable.path
            # normal, not uniform or truncated
            assert np.abs(values).max() > 2.3 * std, variable.path


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_no_two_matrices_start_alike(tie_embeddings):
    model = GPT(GPTConfig(**SIZES, tie_embeddings=tie_embeddings))
    matrices = [v for v in model.trainable_variables if len(v.shape) == 2]
    for i, one in enumerate(matrices):
        for other in matrices[:i]:
            a, b = array(one).ravel(), array(other).ravel()
            common = min(len(a), len(b))
            correlation = np.corrcoef(a[:common], b[:common])[0, 1]
            # 176 pairs or more: a standard deviation of at most 0.075
            assert abs(correlation) < 0.45, (one.path, other.path)


@pytest.mark.parametrize(
    ("preset", "parameters"), [("gpt2", 124_439_808), ("smollm2_135m", 134_515_008)]
)
def test_presets_have_the_published_number_of_parameters(preset, parameters):
    def count(**overrides):
        return GPT(GPTConfig.from_preset(preset, **overrides)).count_params()

    # it is linear in the layers and in the vocabulary: small ones tell it all
    config = GPTConfig.from_preset(preset)
    one = count(num_layers=1, vocab_size=1)
    per_layer = count(num_layers=2, vocab_size=1) - one
    per_token = count(num_layers=1, vocab_size=2) - one
    layers = (config.num_layers - 1) * per_layer
    assert one + layers + (config.vocab_size - 1) * per_token == parameters


def test_flops_per_token_are_those_counted_by_hand():
    model = GPT(GPTConfig(**{**SIZES, **LLAMA}))
    # a block: query, key and value 16 x 32, output 16 x 16, up 16 x 48, down 24 x 16
    kernels = 2 * (512 + 256 + 768 + 384) + 11 * 16  # and the logits
    forward = 2 * kernels + 4 * 2 * 16 * 10
    assert model.count_flops_per_token(10, training=False) == forward
    assert model.count_flops_per_token(10) == 3 * forward
    longer = model.count_flops_per_token() - model.count_flops_per_token(10)
    assert longer == 3 * 4 * 2 * 16 * 2  # context_length is 12
    tied = GPT(GPTConfig(**{**SIZES, **LLAMA, "tie_embeddings": True}))
    assert tied.count_flops_per_token(10) == 3 * forward


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([[1, 11, 12]]), "from 0 to 10 .*Received: 11.*tokenizer"),
        ([[1, 2], [-1, 0]], "from 0 to 10 .*Received: -1"),
        (np.array([[1.0, 2.0]]), "`token_ids` must be integers.*float64"),
        ([[1, 2], [3]], "rectangle.*pad"),
        (np.zeros((1, 13), "int32"), "13 tokens, context_length=12"),
    ],
)
def test_ids_that_do_not_fit_are_named(ids, message):
    with pytest.raises(ValueError, match=message):
        make_model()(ids)


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        "SparseCategoricalCrossentropy",
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.CategoricalCrossentropy(),
        TokenCrossentropy(from_logits=False),
    ],
)
def test_a_loss_that_takes_logits_for_probabilities_is_refused(compiled, loss):
    with pytest.raises(ValueError, match=r"`loss` must take.*from_logits=True"):
        compiled.compile("adam", loss)


@pytest.fixture(scope="module")
def compiled():
    model = make_model()
    model.compile(keras.optimizers.SGD(0.0), metrics=["accuracy"])
    return model


@pytest.mark.parametrize("variant", ["gpt2", "llama", "packed"])
def test_a_clone_is_a_model_of_its_own_that_takes_the_weights(variant):
    model = make_model(variant, dtype="mixed_bfloat16")
    model.compile("sgd")
    clone = keras.models.clone_model(model)
    assert (type(clone), clone.get_config()) == (GPT, model.get_config())
    assert (array(clone(IDS)) != array(model(IDS))).any()
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(array(clone(IDS)), array(model(IDS)))
    clone.train_on_batch(IDS)
    assert (array(clone(IDS)) != array(model(IDS))).any()


def test_a_clone_is_quantized_as_the_model_is():
    model = make_model("llama")
    model.quantize("int8")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(array(clone(IDS)), array(model(IDS)))


def test_targets_may_be_left_out(compiled):
    x, y = IDS[:, :-1], IDS[:, 1:]
    expected = compiled.test_on_batch(x, y)
    for found in (
        compiled.evaluate(IDS, verbose=0),
        compiled.test_on_batch(IDS.tolist()),
        compiled.train_on_batch(IDS),
        compiled.evaluate((ids for ids in [(IDS,)]), steps=1, verbose=0),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32 sums
    for validation in ((IDS,), (x.tolist(), y.tolist())):
        history = compiled.fit(IDS, validation_data=validation, verbose=0).history
        assert history["val_loss"] == pytest.approx([expected[0]], rel=1e-5)


ABOVE = np.where(IDS == 10, 11, IDS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((ABOVE, IDS), "`x` must be from 0 to 10.*Received: 11.*tokenizer"),
        ((IDS, ABOVE), "`y` must be from 0 to 10.*Received: 11.*tokenizer"),
        ((IDS, IDS[:, 1:]), r"`y` must have the shape of `x`.*x \(2, 9\), y \(2, 8\)"),
        ((IDS[0], IDS[0]), r"`x` must be .*shape=\(9,\).*x\[None\]"),
        ((IDS / 1, IDS), "`x` must be integers.*float64"),
        ((["to be", "or not"],), r"`x` must be integers.*keras_gpt\.data\.load_texts"),
        ((np.tile(IDS, 2),), "Received: 18 tokens, context_length=12"),
        ((IDS, IDS, np.ones((2, 5))), r"`sample_weight` must.*\(2, 5\)"),
        ((IDS, None, np.ones(2)), "`sample_weight` needs `y`"),
    ],
)
def test_data_that_does_not_fit_is_named_before_it_is_used(compiled, data, message):
    x, y, weight = (*data, None, None)[:3]
    steps = int(compiled.optimizer.iterations)
    for use in (
        lambda: compiled.fit(x, y, sample_weight=weight),
        lambda: compiled.fit(IDS, IDS, validation_data=data),
        lambda: compiled.evaluate(x, y, sample_weight=weight),
        lambda: compiled.train_on_batch(x, y, weight),
        lambda: compiled.test_on_batch(x, y, weight),
        lambda: compiled.fit((batch for batch in [data]), shuffle=False),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    assert compiled.optimizer.iterations == steps


@pytest.mark.every_backend
def test_datasets_are_checked_batch_by_batch_or_by_their_first(compiled):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return IDS, ABOVE

    batches = [(IDS, IDS), (IDS, IDS), (IDS, ABOVE)]
    for dataset, steps in (
        (Batches(), None),
        (grain.MapDataset.source(batches), 3),
        (grain.MapDataset.source(batches).to_iter_dataset(), 3),
    ):
        with pytest.raises(ValueError, match=r"`y` must be from 0 to 10.*Received: 11"):
            compiled.evaluate(dataset, steps=steps, verbose=0)
    with pytest.raises(ValueError, match="`x` must be from 0 to 10"):
        compiled.predict(ABOVE)
    assert compiled(IDS).shape == (2, 9, 11)  # its weights are still there


@pytest.mark.every_backend
def test_scores_are_asked_for_with_valid_ids():
    with pytest.raises(ValueError, match="Received: 11"):
        make_model().attention_scores([[11]])


def test_a_configuration_is_required():
    with pytest.raises(
        ValueError, match=r"`config` must be a GPTConfig. Received: dict"
    ):
        GPT(SIZES)


@pytest.mark.every_backend
def test_lists_and_integers_of_any_width_are_the_same():
    model = make_model()
    expected = array(model(IDS))
    for ids in (IDS.tolist(), IDS.astype("uint16"), IDS.astype("int64")):
        np.testing.assert_array_equal(array(model(ids)), expected)


@pytest.mark.every_backend
def test_sequences_of_any_length_predict_as_they_call():
    # TensorFlow gives up on a static length after some: none may break on that
    model = make_model("mistral")
    model.compile(jit_compile=False)
    whole = array(model(IDS))
    for length in (5, 7, 1):
        # the same float32 sums, fused in other ways
        np.testing.assert_allclose(
            model.predict(IDS[:, :length], verbose=0), whole[:, :length], atol=1e-4
        )


@pytest.mark.every_backend
def test_one_token_gives_no_warning():
    model = make_model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logits = array(model(IDS[:, :1]))
    # how Keras's variables become NumPy arrays is Keras's concern
    assert not [w for w in caught if "__array__" not in str(w.message)]
    np.testing.assert_allclose(logits, array(model(IDS))[:, :1], atol=1e-4)


def test_summary_reads_from_ids_to_logits():
    model = make_model()
    lines = []
    model.summary(print_fn=lines.append)
    text = "\n".join(map(str, lines))
    places = [
        text.index(name)
        for name in (
            "token_ids",
            "embedding",
            "block_0",
            "block_1",
            "final_norm",
            "logits",
        )
    ]
    assert places == sorted(places)
    assert f"{model.count_params():,}" in text


@pytest.mark.every_backend
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_an_id_that_occurs_twice_counts_as_one_gradient(tie_embeddings):
    config = GPTConfig(
        vocab_size=3,
        context_length=4,
        embedding_dimension=8,
        num_layers=1,
        num_heads=2,
        tie_embeddings=tie_embeddings,
    )
    model = GPT(config)
    model.compile(keras.optimizers.Adam(1e-3, beta_1=0.5, beta_2=0.5))
    ids = np.array([[1, 1, 1, 2], [1, 1, 1, 1]])
    model.fit(ids, ids, verbose=0)
    optimizer = model.optimizer
    moments = {v.path: ops.convert_to_numpy(v) for v in optimizer.variables[2:]}
    name = "embedding_tokens_embeddings"
    first = next(v for path, v in moments.items() if path.endswith(f"{name}_momentum"))
    second = next(v for path, v in moments.items() if path.endswith(f"{name}_velocity"))
    # after one step both are half of the gradient and of its square
    np.testing.assert_allclose(second, 2 * first**2, rtol=1e-5, atol=1e-12)
