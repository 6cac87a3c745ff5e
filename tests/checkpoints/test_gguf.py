import struct
import types

import gguf
import keras
import numpy as np
import pytest

import keras_gpt
from keras_gpt.checkpoints import read_gguf, write_gguf, write_huggingface
from keras_gpt.checkpoints.gguf.file import read_gguf_file
from keras_gpt.tokenizers import BytePairTokenizer, ChatTemplate

TEXTS = ["the cat sat on the mat", "the dog sat", "a cat and 12 dogs"]
IDS = np.array([[5, 17, 200, 17, 3, 259]])
TINY = {
    "vocab_size": 300,
    "context_length": 32,
    "embedding_dimension": 64,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_dimension": 96,
}
LLAMA = {
    **TINY,
    "num_kv_heads": 2,
    "position_embedding": "rotary",
    "normalization": "rms_norm",
    "activation": "swiglu",
    "use_bias": False,
}
FAMILIES = {
    "gpt2": {**TINY, "activation": "gelu_tanh"},
    "llama": {**LLAMA, "tie_embeddings": False, "rotary_base": 5000.0},
    "llama_with_narrow_heads": {**LLAMA, "attention_dimension": 32},
    "qwen2": {**LLAMA, "query_key_value_bias": True},
    "qwen3": {**LLAMA, "qk_norm": True},
}


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairTokenizer.train(TEXTS, vocab_size=270, progress=False)


@pytest.fixture
def make_lm(tokenizer):
    def make(fields, **options):
        model = keras_gpt.GPT(keras_gpt.GPTConfig(**fields), dtype="float32")
        random = np.random.default_rng(0)
        for weight in model.weights:  # norms and biases too differ from 1 and 0
            noise = random.normal(0, 0.1, tuple(weight.shape))
            weight.assign(keras.ops.convert_to_numpy(weight) + noise)
        return keras_gpt.LanguageModel(model, tokenizer, **options)

    return make


@pytest.fixture
def llama_file(make_lm, tmp_path):
    """A whole file, its settings and its tensors, to be changed by a test."""
    path = tmp_path / "llama.gguf"
    write_gguf(make_lm(FAMILIES["llama"]), path, dtype="float32")
    settings, tensors = read_gguf_file(path)
    return types.SimpleNamespace(
        path=path,
        settings=settings,
        tensors={
            name: np.concatenate(list(tensor.read_rows()))
            for name, tensor in tensors.items()
        },
    )


def logits(model):
    return keras.ops.convert_to_numpy(model(IDS))


def weights(model):
    return {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}


def write_file(path, settings, tensors, kind=None):
    """What llama.cpp's converter does; matrices quantized to `kind`."""
    writer = gguf.GGUFWriter(path, settings["general.architecture"])
    for key, value in settings.items():
        if isinstance(value, str):
            writer.add_string(key, value) if key != "general.architecture" else None
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, values in tensors.items():
        if kind is not None and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Settings of the file that Transformers passes over
PASSED_OVER = {
    "gpt2": {"n_positions": 32, "n_inner": 96},
    "qwen3": {"head_dim": 16},
}


def transformers_logits(path):
    """Logits of Transformers' own reading of the file.

    Its `from_pretrained` wants the package accelerate for this; these are its steps.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    config.update(PASSED_OVER.get(config.model_type, {}))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    loaded = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)
    result = model.load_state_dict(loaded["tensors"], strict=False)
    assert set(result.missing_keys) <= {"lm_head.weight"}
    assert not result.unexpected_keys
    model.tie_weights()
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_read_back(family, make_lm, tmp_path):
    lm = make_lm(FAMILIES[family])
    write_gguf(lm, tmp_path / "model.gguf", dtype="float32")
    checkpoint = read_gguf(tmp_path / "model.gguf")
    read, original = checkpoint.config.to_dict(), lm.model.config.to_dict()
    differ = {name for name in read if read[name] != original[name]}
    assert differ <= {"num_kv_heads", "query_key_value_bias"}
    theirs = weights(checkpoint.build_model("float32"))
    for path, values in weights(lm.model).items():
        np.testing.assert_array_equal(theirs[path], values, err_msg=path)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_same_model(family, make_lm, tmp_path):
    lm = make_lm(FAMILIES[family])
    write_gguf(lm, tmp_path / "model.gguf", dtype="float32")
    theirs = transformers_logits(tmp_path / "model.gguf")
    # other kernels: float32's rounding
    np.testing.assert_allclose(logits(lm.model), theirs, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rounds_matrices_alone(dtype, make_lm, tmp_path):
    lm = make_lm(FAMILIES["llama"])
    write_gguf(lm, tmp_path / "model.gguf", dtype=dtype)
    checkpoint = read_gguf(tmp_path / "model.gguf")
    assert checkpoint.read("blk.0.attn_q.weight").dtype == dtype
    assert checkpoint.source["quantization"] == {"float16": "F16"}.get(dtype, "BF16")
    theirs = weights(checkpoint.build_model("float32"))
    for path, values in weights(lm.model).items():
        if values.ndim > 1:
            values = keras.ops.cast(keras.ops.cast(values, dtype), "float32")
            values = keras.ops.convert_to_numpy(values)
        np.testing.assert_array_equal(theirs[path], values, err_msg=path)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_models_equal_transformers(kind, llama_file, tmp_path):
    path = tmp_path / f"{kind}.gguf"
    kind = gguf.GGMLQuantizationType[kind]
    write_file(path, llama_file.settings, llama_file.tensors, kind)
    checkpoint = read_gguf(path)
    assert checkpoint.source["quantization"] == kind.name
    ours = logits(checkpoint.build_model("float32"))
    np.testing.assert_allclose(ours, transformers_logits(path), atol=1e-5)


def test_every_quantization_of_the_gguf_package_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_gpt.checkpoints.stored.CHUNK", 4 * 256 * 3)
    random = np.random.default_rng(0)
    stored = {}
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        # bytes below 60: float16 scales stay finite
        rows = random.integers(0, 60, (7, 256 // block * size), np.uint8)
        try:
            stored[kind] = rows, gguf.quants.dequantize(rows, kind)
        except NotImplementedError:
            continue
    assert len(stored) > 20
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
    for kind, (rows, _) in stored.items():
        writer.add_tensor(kind.name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = read_gguf_file(tmp_path / "all.gguf")[1]
    for kind, (_, values) in stored.items():
        read = np.concatenate(list(tensors[kind.name].read_rows()))
        np.testing.assert_array_equal(read.astype("float32"), values, kind.name)


def test_a_split_model_is_read_whole(llama_file, tmp_path):
    names = list(llama_file.tensors)
    parts = {1: names[:5], 2: names[5:9], 3: names[9:]}
    for number, part in parts.items():
        settings = {"general.architecture": "llama"}
        if number == 1:
            settings = dict(llama_file.settings)
        settings |= {"split.no": number - 1, "split.count": 3}
        tensors = {name: llama_file.tensors[name] for name in part}
        write_file(tmp_path / f"m-{number:05}-of-00003.gguf", settings, tensors)
    first = tmp_path / "m-00001-of-00003.gguf"
    checkpoint = read_gguf(first)
    assert set(checkpoint.shapes) == set(names)
    for name in names:
        expected = read_gguf(llama_file.path).read(name)
        np.testing.assert_array_equal(checkpoint.read(name), expected)
    with pytest.raises(ValueError, match="Give the first"):
        read_gguf(tmp_path / "m-00002-of-00003.gguf")
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(FileNotFoundError, match=r"m-00003-of-00003\.gguf isn't"):
        read_gguf(first)


def test_template_stop_ids_source_and_tasks_go_through_the_file(
    make_lm, tokenizer, tmp_path
):
    end = tokenizer.end_of_text_id
    template = ChatTemplate("{{ eos_token }}", {"eos_token": "<|endoftext|>"})
    lm = make_lm(
        FAMILIES["llama"],
        chat_template=template,
        stop_ids=(end, 7),
        source={"license": "apache-2.0"},
        tasks={"translate": {"languages": [["en", "de"]]}},
    )
    write_gguf(lm, tmp_path / "tiny.gguf")
    checkpoint = read_gguf(tmp_path / "tiny.gguf")
    assert checkpoint.tasks == lm.tasks
    assert checkpoint.chat_template == template
    assert checkpoint.stop_ids == (end, 7)
    assert checkpoint.source == {
        "format": "GGUF",
        "file": "tiny.gguf",
        "architecture": "llama",
        "name": "tiny",
        "license": "apache-2.0",
        "quantization": "F16",
    }


def test_sampling_settings_become_generation_defaults(llama_file, tmp_path):
    settings = {"general.sampling.temp": 0.5, "general.sampling.top_p": 0.9}
    path = tmp_path / "sampling.gguf"
    write_file(path, llama_file.settings | settings, llama_file.tensors)
    expected = {"temperature": 0.5, "top_p": 0.9, "top_k": None}
    assert read_gguf(path).generation_defaults == expected


def test_an_output_that_copies_the_embedding_is_tied(llama_file, tmp_path):
    tensors = dict(llama_file.tensors)
    assert not read_gguf(llama_file.path).config.tie_embeddings
    tensors["output.weight"] = tensors["token_embd.weight"]
    write_file(tmp_path / "copy.gguf", llama_file.settings, tensors)
    checkpoint = read_gguf(tmp_path / "copy.gguf")
    assert checkpoint.config.tie_embeddings
    checkpoint.build_model()


LLAMA3_SCALING = {
    "type": "llama3",
    "factor": 8.0,
    "low_frequency_factor": 1.0,
    "high_frequency_factor": 4.0,
    "original_context_length": 16,
}


@pytest.mark.parametrize(
    "scaling",
    [LLAMA3_SCALING, {"type": "linear", "factor": 4.0}],
    ids=lambda s: s["type"],
)
def test_rotary_scaling_goes_through_the_file(scaling, make_lm, tmp_path):
    # heads wide enough for frequencies above, within and below llama3's limits
    fields = {**LLAMA, "num_heads": 2, "rotary_scaling": scaling}
    write_gguf(make_lm(fields), tmp_path / "scaled.gguf")
    read = read_gguf(tmp_path / "scaled.gguf").config.rotary_scaling
    assert read["factor"] == pytest.approx(scaling["factor"], rel=1e-6)  # float32's
    assert {**read, "factor": scaling["factor"]} == scaling


def test_settings_of_the_older_kind_are_read(llama_file, tmp_path):
    settings = dict(llama_file.settings)
    for name in ("key_length", "value_length"):
        del settings[f"llama.attention.{name}"]
    del settings["llama.rope.dimension_count"]
    settings["llama.rope.scale_linear"] = 2.0
    settings["llama.attention.sliding_window"] = 8
    write_file(tmp_path / "old.gguf", settings, llama_file.tensors)
    config = read_gguf(tmp_path / "old.gguf").config
    assert config.rotary_scaling == {"type": "linear", "factor": 2.0}
    assert config.sliding_window == 8


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "mamba", "Received: general.architecture='mamba'"),
        ("llama.block_count", None, "lacks the setting llama.block_count"),
        ("llama.block_count", 2**31, "lacks blk.2.attn_norm.weight"),
        (
            "llama.embedding_length",
            "wide",
            "llama.embedding_length='wide'. It must be an",
        ),
        ("llama.feed_forward_length", [96, 64], "the same in all blocks"),
        ("llama.feed_forward_length", 128, r"blk.0.ffn_gate.weight has the shape \(96"),
        ("llama.attention.value_length", 8, "attention.value_length=8. It must be 16"),
        ("llama.rope.dimension_count", 8, "rope.dimension_count=8. It must be 16"),
        (
            "llama.rope.scaling.type",
            "yarn",
            "rope.scaling.type='yarn'. It must be 'none'",
        ),
        ("llama.expert_count", 8, "llama.expert_count=8. It must be 0"),
        ("tokenizer.ggml.model", "rwkv", "Received: tokenizer.ggml.model='rwkv'"),
        ("tokenizer.chat_template", "{% if %}", "isn't valid Jinja"),
        ("keras_gpt.tasks", '["chat"]', "tasks must be a table"),
        ("keras_gpt.tasks", 7, "tasks must be a table"),
    ],
)
def test_what_is_not_supported_is_refused(key, value, message, llama_file, tmp_path):
    settings = llama_file.settings | {key: value}
    path = tmp_path / "refused.gguf"
    write_file(path, settings, llama_file.tensors)
    with pytest.raises(ValueError, match=message) as error:
        read_gguf(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blk.1.ffn_gate_inp.weight": np.ones((4, 64), "f4")}, "has no place"),
        ({"blk.1.attn_output.bias": np.ones(64, "f4")}, "has no place"),
        ({"blk.1.attn_norm.weight": None}, "lacks blk.1.attn_norm.weight"),
        ({"token_embd.weight": None}, "lacks the tensor token_embd.weight"),
        (
            {"blk.1.ffn_up.weight": np.ones((64, 64), "f4")},
            "blk.1.ffn_up.weight has the sh",
        ),
        ({"rope_freqs.weight": np.arange(1, 9, dtype="f4")}, "Llama 3.1's way"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_tensors_are_refused(changes, message, llama_file, tmp_path):
    tensors = {k: v for k, v in (llama_file.tensors | changes).items() if v is not None}
    write_file(tmp_path / "other.gguf", llama_file.settings, tensors)
    with pytest.raises(ValueError, match=message):
        read_gguf(tmp_path / "other.gguf").build_model()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"PK\3\4" + data[4:], "doesn't begin with 'GGUF'"),
        (lambda data: b"", "header is cut off"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "GGUF version 1;"),
        (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "version big-endian"),
        (lambda data: data[:8] + struct.pack("<Q", 2**63) + data[16:], "claims 9"),
        (
            lambda data: data[:16] + struct.pack("<Q", 2**20) + data[24:],
            "header is cut off",
        ),
        (
            lambda data: data[:24] + struct.pack("<Q", 2**40) + data[32:],
            "claims a text",
        ),
        (lambda data: data[:2000], "header is cut off"),
        (lambda data: data[:-64], "the end of its tensor"),
        (
            lambda data: data.replace(
                b"\5\0\0\0" + struct.pack("<Q", 300),
                b"\5\0\0\0" + struct.pack("<Q", 2**62),
            ),
            "claims 46",
        ),
        (
            lambda data: data.replace(
                b"output_norm.weight\1\0\0\0", b"output_norm.weight\x7f\0\0\0"
            ),
            "has 127 axes",
        ),
    ],
)
def test_a_damaged_file_is_named(damage, message, llama_file):
    data = llama_file.path.read_bytes()
    damaged = damage(data)
    assert damaged != data
    llama_file.path.write_bytes(damaged)
    with pytest.raises(ValueError, match=message) as error:
        read_gguf(llama_file.path)
    assert str(llama_file.path) in str(error.value)
    assert "\n" not in str(error.value)


def test_any_changed_byte_of_the_header_is_read_or_refused(llama_file):
    data = bytearray(llama_file.path.read_bytes())
    end = min(info.offset for info in read_gguf_file(llama_file.path)[1].values())
    random = np.random.default_rng(0)
    for place in random.integers(0, end, 150):
        changed = bytearray(data)
        changed[place] ^= int(random.integers(1, 256))
        llama_file.path.write_bytes(changed)
        error = ""
        try:
            read_gguf(llama_file.path)
        except ValueError as caught:
            error = str(caught)
        assert not error or str(llama_file.path) in error


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.gguf"):
        read_gguf(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "gelu"}, "activation='gelu_tanh'. Received: activation='gelu'"),
        ({"use_bias": False}, "use_bias=True"),
        ({"position_embedding": "sinusoidal"}, "position_embedding='learned'"),
        ({"num_kv_heads": 2}, "num_kv_heads=4"),
        ({**LLAMA, "activation": "gelu"}, "activation='swiglu'"),
        ({**LLAMA, "sliding_window": 8}, "sliding_window=None"),
        ({**LLAMA, "query_key_value_bias": True, "qk_norm": True}, "_bias=False"),
        (
            {**LLAMA, "qk_norm": True, "rotary_scaling": LLAMA3_SCALING},
            "rotary_scaling",
        ),
    ],
)
def test_architectures_that_llama_cpp_lacks_are_refused(
    changes, message, make_lm, tmp_path
):
    lm = make_lm({**FAMILIES["gpt2"], **changes})
    with pytest.raises(ValueError, match=message):
        write_gguf(lm, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_bad_arguments_of_writing_are_refused(make_lm, tmp_path):
    lm = make_lm(FAMILIES["gpt2"])
    with pytest.raises(ValueError, match="dtype='int3'"):
        write_gguf(lm, tmp_path / "model.gguf", dtype="int3")
    lm.model.get_layer("embedding").tokens.embeddings.assign(np.full((300, 64), 1e6))
    with pytest.raises(ValueError, match=r"token_embd\.weight has values beyond"):
        write_gguf(lm, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())
    lm.tokenizer = keras_gpt.CharacterTokenizer.train(["abc"])
    with pytest.raises(ValueError, match="tokenizer=CharacterTokenizer"):
        write_gguf(lm, tmp_path / "model.gguf")


def test_weights_that_are_not_all_of_the_model_are_not_written(make_lm, tmp_path):
    lm = make_lm({**FAMILIES["llama"], "num_layers": 1})
    keras_gpt.training.enable_lora(lm.model, rank=2, targets=["up_projection"])
    writers = (write_gguf, write_huggingface)
    for write in writers:
        with pytest.raises(ValueError, match="nor with adapters"):
            write(lm, tmp_path / "model")
    keras_gpt.training.merge_lora(lm.model)
    for write in writers:
        write(lm, tmp_path / write.__name__)
    lm.model.quantize("int8")
    for write in writers:
        with pytest.raises(ValueError, match="neither quantized"):
            write(lm, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("size", [100, 10_000, 100_000])
@pytest.mark.parametrize("write", [write_gguf, write_huggingface])
def test_a_full_disk_is_one_line_that_names_the_file(
    write, size, make_lm, full_disk, tmp_path
):
    lm = make_lm(FAMILIES["llama"])
    message = r"^\[Errno \d+\] [^ ]*/model can't be written: [^/]*Make room[^/]*$"
    with pytest.raises(OSError, match=message), full_disk(size):
        write(lm, tmp_path / "model")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_smollm2_is_described_by_its_file(smollm2_file):
    checkpoint = read_gguf(smollm2_file)
    preset = keras_gpt.GPTConfig.from_preset("smollm2_135m", num_kv_heads=3)
    assert checkpoint.config == preset
    assert checkpoint.stop_ids == (2,)
    assert checkpoint.source["quantization"] == "Q4_1"
    assert checkpoint.source["license"] == "apache-2.0"
