import dataclasses
import json

import pytest

from keras_gpt import PRESETS, GPTConfig
from keras_gpt.config import default_feed_forward_dimension

SMALL = {
    "vocab_size": 11,
    "context_length": 16,
    "embedding_dimension": 24,
    "num_layers": 2,
    "num_heads": 4,
}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_survives_json(preset):
    config = GPTConfig.from_preset(preset)
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_overrides_replace_a_presets_fields():
    config = GPTConfig.from_preset("gpt2", dropout_rate=0.1, num_layers=3)
    assert (config.dropout_rate, config.num_layers) == (0.1, 3)
    assert config.embedding_dimension == 768


def test_a_configuration_cannot_change_and_equals_its_copy():
    config = GPTConfig(**SMALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_layers = 3
    assert {config: 1}[GPTConfig(**SMALL)] == 1
    assert config != GPTConfig(**{**SMALL, "num_layers": 3})


def test_arguments_are_keywords_only():
    with pytest.raises(TypeError):
        GPTConfig(11, 16, 24, 2, 4)


@pytest.mark.parametrize(
    ("embedding_dimension", "activation", "expected"),
    [
        (768, "gelu_tanh", 3072),  # GPT-2
        (4096, "swiglu", 10944),  # 8/3 of it, rounded up to 32
        (192, "swiglu", 512),  # 8/3 of it exactly
        (12, "relu_squared", 48),
    ],
)
def test_default_feed_forward_dimension(embedding_dimension, activation, expected):
    assert default_feed_forward_dimension(embedding_dimension, activation) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (field, value)
            for field in (
                "vocab_size",
                "context_length",
                "embedding_dimension",
                "num_layers",
                "num_heads",
                "num_kv_heads",
                "feed_forward_dimension",
                "sliding_window",
            )
            for value in (0, -1, 2.0, "4", True)
        ),
        ("vocab_size", None),
        ("dropout_rate", 1.0),
        ("dropout_rate", -0.1),
        ("dropout_rate", float("nan")),
        ("dropout_rate", "a lot"),
        ("rotary_base", 0.0),
        ("rotary_base", float("nan")),
        ("rotary_base", "large"),
        ("norm_epsilon", -1e-5),
        ("norm_epsilon", None),
        ("document_separator_id", 11),
        ("document_separator_id", -1),
        ("document_separator_id", 1.5),
        ("position_embedding", "absolute"),
        ("normalization", None),
        ("activation", "relu"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_field(field, value):
    with pytest.raises(ValueError, match=rf"`{field}`") as error:
        GPTConfig(**{**SMALL, field: value})
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    ("fields", "way_out"),
    [
        ({"num_heads": 5}, "Try num_heads=4"),
        ({"num_kv_heads": 3}, "Try num_kv_heads=2"),
        ({"num_heads": 8, "position_embedding": "rotary"}, "must be even"),
        ({"activation": "swigloo"}, "Did you mean 'swiglu'"),
        ({"normalization": "rmsnorm"}, "Did you mean 'rms_norm'"),
        ({"position_embedding": "rope"}, "Did you mean 'rotary'"),
        ({"activation": "silu"}, "Did you mean 'swiglu'"),
    ],
)
def test_errors_say_the_way_out(fields, way_out):
    with pytest.raises(ValueError, match=way_out):
        GPTConfig(**{**SMALL, **fields})


def test_an_odd_head_dimension_is_fine_without_rotary_positions():
    assert GPTConfig(**{**SMALL, "num_heads": 8}).head_dimension == 3


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match=r"'gtp2'.*Did you mean 'gpt2'.*smollm2_135m"):
        GPTConfig.from_preset("gtp2")


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(ValueError, match=r"'n_layers'.*Did you mean 'num_layers'"):
        GPTConfig.from_dict({**SMALL, "n_layers": 3})
    with pytest.raises(ValueError, match=r"'num_head'.*Did you mean 'num_heads'"):
        GPTConfig.from_preset("gpt2", num_head=3)
    with pytest.raises(TypeError, match=r"'num_head'.*Did you mean 'num_heads'"):
        GPTConfig(**SMALL, num_head=3)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("embedding_dim", "embedding_dimension"),
        ("vocabulary_size", "vocab_size"),
        ("hidden_dim", "embedding_dimension"),
        ("intermediate_dim", "feed_forward_dimension"),
        ("max_sequence_length", "context_length"),
        ("n_embd", "embedding_dimension"),
        ("n_layer", "num_layers"),
        ("n_head", "num_heads"),
        ("n_positions", "context_length"),
        ("hidden_size", "embedding_dimension"),
        ("num_hidden_layers", "num_layers"),
        ("num_attention_heads", "num_heads"),
        ("num_key_value_heads", "num_kv_heads"),
        ("max_position_embeddings", "context_length"),
        ("rope_theta", "rotary_base"),
        ("bias", "use_bias"),
    ],
)
def test_names_of_other_libraries_are_known(theirs, ours):
    with pytest.raises(TypeError, match=f"'{theirs}'. Did you mean '{ours}'"):
        GPTConfig(**SMALL, **{theirs: 1})


def test_missing_fields_are_all_named():
    with pytest.raises(TypeError, match=r"`num_layers`, `num_heads`. Received: vocab"):
        GPTConfig(vocab_size=11, context_length=16, embedding_dimension=24)
    with pytest.raises(ValueError, match="`num_layers`, `num_heads`"):
        GPTConfig.from_dict(
            {"vocab_size": 11, "context_length": 16, "embedding_dimension": 24}
        )
