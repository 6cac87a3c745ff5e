"""Folders that are damaged, unknown or hostile: one clear line, and nothing runs."""

import json
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_gpt.checkpoints import read_huggingface

pytestmark = pytest.mark.usefixtures("quiet_transformers")

LLAMA = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory, byte_pair, make_reference):
    folder = tmp_path_factory.mktemp("original")
    byte_pair.save(folder)
    make_reference("llama", LLAMA).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A small Llama that a test may damage."""
    for path in original.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def read_settings(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))


def write_settings(folder, settings):
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")


def refuse(folder, match=None, kind=ValueError):
    """Loading raises one line that says what is wrong."""
    with pytest.raises(kind, match=match) as caught:
        read_huggingface(folder).build_model()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_the_undamaged_one_loads(folder):
    assert read_huggingface(folder).build_model().config.num_kv_heads == 2


def test_a_missing_tensor_is_named(folder):
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(folder, lambda tensors: tensors.pop(name))
    refuse(folder, f"lacks {name}")


def test_a_tensor_without_a_place_is_named(folder):
    name = "model.layers.0.mlp.expert.weight"
    change_tensors(
        folder, lambda tensors: tensors.update({name: np.ones(3, "float32")})
    )
    refuse(folder, f"has {name}, for which the architecture has no place")


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    ],
)
def test_a_tensor_of_a_wrong_shape_is_named(folder, name):
    def cut(tensors):
        tensors[name] = np.ascontiguousarray(tensors[name][:-1])

    change_tensors(folder, cut)
    refuse(folder, name)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "bloom"}, "model_type='bloom'"),
        ({"model_type": None}, "model_type=None"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "lacks 'factor'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'quant_method': 'gptq'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"attention_bias": True}, "attention_bias=True"),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 9,
                "max_window_layers": 1,
                "layer_types": None,
            },
            "use_sliding_window=True",
        ),
    ],
)
def test_what_is_not_supported_is_named(folder, changes, match):
    write_settings(folder, {**read_settings(folder), **changes})
    refuse(folder, match)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": "four"},
        {"num_attention_heads": "four", "head_dim": None},
        {"num_attention_heads": 4.0},
        {"num_attention_heads": True, "num_key_value_heads": 1},
        {"num_attention_heads": 3},
        {"num_key_value_heads": "two"},
        {"num_key_value_heads": 10**20},
        {"num_attention_heads": 10**20},
        {"num_hidden_layers": [2]},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 10**9},
        {"hidden_size": None},
        {"hidden_size": 10**15},
        {"vocab_size": 10**15},
        {"head_dim": "8"},
        {"head_dim": 10**15},
        {"rms_norm_eps": "1e-6"},
        {"rms_norm_eps": -1},
        {"model_type": ["llama"]},
        {"model_type": {}},
        {"rope_parameters": "default"},
        {"rope_parameters": [1]},
        {"rope_parameters": {"rope_theta": "high"}},
        {"rope_parameters": {"rope_type": ["linear"]}},
        {"rope_parameters": {"rope_type": "linear", "factor": "two"}},
        {"quantization_config": "int4"},
        {"quantization_config": [4]},
        {"tie_word_embeddings": "no"},
        {"attention_bias": "no"},
        {"model_type": "mistral", "sliding_window": "wide"},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9,
         "layer_types": 3},
    ],
)  # fmt: skip
def test_values_of_a_wrong_type_are_refused(folder, changes):
    write_settings(folder, {**read_settings(folder), **changes})
    refuse(folder)


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "num_attention_heads"])
def test_a_missing_setting_is_named(folder, name):
    settings = read_settings(folder)
    del settings[name]
    write_settings(folder, settings)
    refuse(folder, f"lacks '{name}'")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must hold a JSON object"),
        (b"3", "must hold a JSON object"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_description_that_is_no_object_is_refused(folder, content, match):
    (folder / "config.json").write_bytes(content)
    refuse(folder, match)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("generation_config.json", {"eos_token_id": "x"}),
        ("generation_config.json", {"eos_token_id": [1, None]}),
        ("generation_config.json", {"do_sample": True, "temperature": "hot"}),
        ("generation_config.json", [1]),
        ("tokenizer_config.json", [1]),
        ("tokenizer_config.json", {"chat_template": 3}),
        ("tokenizer_config.json", {"chat_template": [1]}),
        ("tokenizer_config.json", {"chat_template": "{% if"}),
        ("generation_config.json", {"do_sample": True, "top_k": [1]}),
        ("tokenizer.json", {}),
        ("tokenizer.json", [1]),
        ("tokenizer.json", {"version": "1.0", "model": {"type": "BPE"}}),
    ],
)
def test_other_files_with_a_wrong_content_are_refused(folder, file, content):
    (folder / file).write_text(json.dumps(content), "utf-8")
    refuse(folder)


def test_a_folder_without_a_file_says_which(folder):
    (folder / "tokenizer.json").unlink()
    refuse(folder, "no tokenizer in", FileNotFoundError)
    (folder / "model.safetensors").unlink()
    refuse(folder, r"model\.safetensors is missing", FileNotFoundError)


def write_shard(path, header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", length) + header + data)


def tensor(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


DATA = bytes(16)


@pytest.mark.parametrize(
    "parts",
    [
        ({"a": tensor(0, 8)}, bytes(8), 10_000),
        ({"a": tensor(0, 8)}, bytes(8), 2**63 - 1),
        ({"a": tensor(0, 8)}, bytes(8), 2**64 - 1),
        ({"a": tensor(0, 8)}, bytes(8), 3),
        ({"a": tensor(0, 8)}, bytes(4)),
        ({"a": tensor(0, 8)}, bytes(80)),
        ({"a": tensor(8, 16)}, DATA),
        ({"a": tensor(0, 2**60, (2**58,))}, DATA),
        ({"a": tensor(0, 2**64 - 1)}, DATA),
        ({"a": tensor(8, 0), "b": tensor(8, 16)}, DATA),
        ({"a": tensor(-8, 0), "b": tensor(0, 16, (4,))}, DATA),
        ({"a": tensor(0, 8), "b": tensor(0, 8)}, bytes(8)),
        ({"a": tensor(0, 12, (3,)), "b": tensor(8, 16)}, DATA),
        ({"a": tensor(0, 8, (3,))}, bytes(8)),
        ({"a": tensor(0, 8, (2**32, 2**32))}, bytes(8)),
        ({"a": tensor(0, 8, (-2,))}, bytes(8)),
        ({"a": tensor(0, 8, dtype="object")}, bytes(8)),
        ({"a": 3}, DATA),
        ([], DATA),
        (b"{", DATA),
        (b"\xff" * 8, DATA),
        (b"", b""),
    ],
)
def test_a_header_that_lies_is_refused(folder, parts):
    write_shard(folder / "model.safetensors", *parts)
    refuse(folder, "isn't a whole safetensors file")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("int8", "I8"), ("int64", "I64"), (ml_dtypes.float8_e4m3fn, "F8_E4M3")],
)
def test_quantized_numbers_are_refused(folder, dtype, name):
    tensor = "model.layers.0.mlp.up_proj.weight"
    values = np.ones((48, 32), dtype)
    change_tensors(folder, lambda tensors: tensors.update({tensor: values}))
    refuse(folder, f"{tensor} is stored as {name}")


@pytest.mark.parametrize("kept", [0, 4, 8, 300, 0.5, 0.999])
def test_a_truncated_file_is_refused(folder, kept):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    kept = kept if isinstance(kept, int) else int(kept * len(content))
    path.write_bytes(content[:kept])
    refuse(folder, "isn't a whole safetensors file")


class Intruder:
    """What a pickle can do to whoever reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")  # a file that appears


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pt"])
def test_a_pickle_is_not_read(folder, name):
    trace = folder / "intruded"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Intruder(trace)))
    refuse(folder, "pickle")
    assert not trace.exists()


def test_a_pickle_with_another_name_is_not_read(folder):
    trace = folder / "intruded"
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps(Intruder(trace)))
        refuse(folder)
        (folder / name).write_bytes(content)
    assert not trace.exists()


@pytest.fixture
def index(folder):
    """A function that gives the weights an index, after a change of it."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    weight_map = dict.fromkeys(tensors, "part.safetensors")

    def write(content=None, **changes):
        content = content or {"weight_map": {**weight_map, **changes}}
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(content), "utf-8")

    return write


def test_a_missing_shard_is_named(folder, index):
    index(**{"model.norm.weight": "other.safetensors"})
    refuse(folder, r"other\.safetensors is missing", FileNotFoundError)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/x.safetensors", "..", "a/../../x", "./part.safetensors", ""],
)
def test_an_index_that_leaves_its_folder_is_not_followed(folder, index, name):
    save_file({"model.norm.weight": np.ones(32, "float32")}, folder / "x.safetensors")
    index(**{"model.norm.weight": name})
    refuse(folder, "outside its folder")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"weight_map": [1]}, "lacks 'weight_map'"),
        ({"weight_map": {"model.norm.weight": 3}}, "outside its folder"),
        ({"weight_map": {"model.norm.weight": ["a"]}}, "outside its folder"),
        ({"weight_map": {"a": "part.safetensors"}}, "lacks a, which its index"),
        ({"nothing": {}}, "lacks 'weight_map'"),
        ([1], "lacks 'weight_map'"),
    ],
)
def test_an_index_of_another_form_is_refused(folder, index, content, match):
    index(content)
    refuse(folder, match)
