"""Folders that Transformers writes: the same logits."""

import json

import keras
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from keras_gpt import LanguageModel
from keras_gpt.checkpoints import read_huggingface

pytestmark = pytest.mark.usefixtures("quiet_transformers")

# Sums in another order: 8e-6 at most was seen, of logits up to 6
TOLERANCE = 1e-4

GPT2 = {"vocab_size": 600, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
LLAMA = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_SCALING = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
WINDOW = {"sliding_window": 50}
CASES = {
    "gpt2": ("gpt2", GPT2),
    "gpt2, untied, other widths": (
        "gpt2",
        {**GPT2, "n_inner": 80, "tie_word_embeddings": False},
    ),
    "gpt2, exact gelu": ("gpt2", {**GPT2, "activation_function": "gelu"}),
    "llama": ("llama", LLAMA),
    "llama, tied, one head for all queries": (
        "llama",
        {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 1},
    ),
    "llama, base 500,000 and Llama 3.1's scaling": (
        "llama",
        {**LLAMA, "rope_parameters": LLAMA3_SCALING},
    ),
    "llama, linear scaling": ("llama", {**LLAMA, "rope_parameters": LINEAR_SCALING}),
    "llama, biases": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "mistral, window shorter than the text": (
        "mistral",
        {**LLAMA, **WINDOW, "head_dim": 16},
    ),
    "qwen2": ("qwen2", LLAMA),
    "qwen2, window in every layer": (
        "qwen2",
        {**LLAMA, **WINDOW, "use_sliding_window": True, "max_window_layers": 0},
    ),
    "qwen3": ("qwen3", {**LLAMA, "head_dim": 16}),
    "seed_oss": ("seed_oss", {**LLAMA, "head_dim": 16}),
}


def read_settings(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))


def write_settings(folder, settings):
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")


def to_numpy(weight):
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(weight.value))


@pytest.fixture
def save(tmp_path, byte_pair):
    """A function that writes a model of Transformers with a tokenizer."""

    def write(model, **options):
        byte_pair.save(tmp_path)
        model.save_pretrained(tmp_path, **options)
        return tmp_path

    return write


@pytest.mark.every_backend
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(
    make_reference, case, save, token_ids, logits_of
):
    reference = make_reference(*CASES[case])
    model = read_huggingface(save(reference)).build_model()
    with torch.no_grad():
        expected = reference(torch.tensor(token_ids)).logits.numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits_of(model, token_ids), expected, atol=TOLERANCE)


def test_shards_give_what_one_file_gives(make_reference, tmp_path, byte_pair):
    reference = make_reference(*CASES["llama"])
    models = []
    for size in ("1GB", "20KB"):
        folder = tmp_path / size
        byte_pair.save(folder)
        reference.save_pretrained(folder, max_shard_size=size)
        models.append(read_huggingface(folder).build_model())
    assert len(list(folder.glob("*.safetensors"))) > 3
    for one, other in zip(*(model.weights for model in models), strict=True):
        assert np.array_equal(to_numpy(one), to_numpy(other))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_halves_are_read_exactly(make_reference, dtype, family, save):
    folder = save(make_reference(*CASES[family]).to(getattr(torch, dtype)))
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    theirs = {name: w.detach().numpy() for name, w in reference.named_parameters()}
    model = read_huggingface(folder).build_model()
    ours = {weight.path: to_numpy(weight) for weight in model.weights}
    if family == "gpt2":
        block = "transformer.h.1."
        expected = {
            "embedding/tokens/embeddings": theirs["transformer.wte.weight"],
            "block_1/attention_norm/gamma": theirs[block + "ln_1.weight"],
            "block_1/attention/query_key_value/kernel": theirs[
                block + "attn.c_attn.weight"
            ],
        }
    else:
        block = "model.layers.1."
        parts = [theirs[f"{block}self_attn.{name}_proj.weight"].T for name in "qkv"]
        gates = [theirs[f"{block}mlp.{name}_proj.weight"].T for name in ("gate", "up")]
        expected = {
            "embedding/tokens/embeddings": theirs["model.embed_tokens.weight"],
            "embedding/tokens/reverse_embeddings": theirs["lm_head.weight"].T,
            "block_1/attention_norm/scale": theirs[block + "input_layernorm.weight"],
            "block_1/attention/query_key_value/kernel": np.concatenate(parts, 1),
            "block_1/feed_forward/up_projection/kernel": np.concatenate(gates, 1),
        }
    for path, values in expected.items():
        assert np.array_equal(ours[path], values), path


@pytest.mark.every_backend
def test_a_bfloat16_model_keeps_the_bits_of_a_bfloat16_file(make_reference, save):
    folder = save(make_reference(*CASES["llama"]).to(torch.bfloat16))
    stored = load_file(folder / "model.safetensors")
    model = read_huggingface(folder).build_model("bfloat16")
    weight = model.embedding.tokens.embeddings
    assert keras.backend.standardize_dtype(weight.dtype) == "bfloat16"
    ours = to_numpy(weight).astype(ml_dtypes.bfloat16)
    assert np.array_equal(ours, stored["model.embed_tokens.weight"])


def test_old_files_have_no_prefix_but_masks(make_reference, save, token_ids, logits_of):
    # gpt2 itself on the Hub
    reference = make_reference(*CASES["gpt2"])
    path = save(reference) / "model.safetensors"
    tensors = load_file(path)
    tensors = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 256, 256), "float32"))
    save_file(tensors, path)
    model = read_huggingface(path.parent).build_model()
    with torch.no_grad():
        expected = reference(torch.tensor(token_ids)).logits.numpy()
    np.testing.assert_allclose(logits_of(model, token_ids), expected, atol=TOLERANCE)


def test_settings_of_transformers_4_mean_the_same(make_reference, save):
    folder = save(make_reference(*CASES["llama, base 500,000 and Llama 3.1's scaling"]))
    expected = read_huggingface(folder).config
    settings = read_settings(folder)
    rotary = settings.pop("rope_parameters")
    settings["rope_theta"] = rotary.pop("rope_theta")
    settings["rope_scaling"] = rotary
    settings["torch_dtype"] = settings.pop("dtype")
    write_settings(folder, settings)
    checkpoint = read_huggingface(folder)
    assert checkpoint.config == expected
    assert checkpoint.source["stored_dtype"] == "float32"


def test_what_the_makers_recommend_is_the_default(make_reference, save):
    folder = save(make_reference(*CASES["gpt2"]))
    (folder / "generation_config.json").write_text(
        json.dumps(
            {"eos_token_id": [7, 8], "do_sample": True, "temperature": 0.6, "top_p": 0}
        )
    )
    (folder / "README.md").write_text("---\ntags:\n- x\nlicense: mit\n---\n# A model\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "chat_template": "{{ eos_token }}{{ messages[0].content }}",
                "eos_token": {"content": "<|endoftext|>"},
            }
        )
    )
    lm = LanguageModel.from_pretrained(folder)
    assert lm.stop_ids == (7, 8)
    assert lm.generation_defaults == {"top_k": None, "temperature": 0.6}
    assert lm.source["license"] == "mit"
    message = {"role": "user", "content": "Hi"}
    assert lm.chat_template.render([message]) == "<|endoftext|>Hi"
    assert len(lm.generate("The", max_new_tokens=3)) > 0
