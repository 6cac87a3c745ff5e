"""Language models that OpenVINO runs: exported, and loaded as any other."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import requests

import keras_gpt
from keras_gpt.openvino_model import GRAPH_FILE
from keras_gpt.tokenizers import ChatTemplate
from tests.server.conftest import serve

openvino = pytest.importorskip("openvino", reason="pip install openvino")

from openvino import opset13  # noqa: E402

from keras_gpt.export.openvino_weights import (  # noqa: E402
    compress_weights,
    store_int4,
)

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
TEXT = "a dog and a fox ran to the old mill. "
PROMPTS = ["a dog", "the old mill and the fox ran", "r"]


@pytest.fixture(scope="module")
def lm():
    """A model with grouped queries and peaked logits, whose context is soon full."""
    tokenizer = keras_gpt.BytePairTokenizer.train([TEXT], vocab_size=270)
    config = keras_gpt.GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=48,
        embedding_dimension=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        position_embedding="rotary",
        normalization="rms_norm",
        activation="swiglu",
        qk_norm=True,
        use_bias=False,
    )
    model = keras_gpt.GPT(config)
    generator = np.random.default_rng(0)
    for weight in model.weights:
        noise = 0.2 * generator.standard_normal(weight.shape)
        weight.assign(noise if len(weight.shape) == 2 else 1 + noise)
    return keras_gpt.LanguageModel(
        model,
        tokenizer,
        chat_template=ChatTemplate("{{ messages[-1]['content'] }}"),
        generation_defaults={"temperature": 1.0, "top_k": 8},
    )


@pytest.fixture(scope="module")
def folders(lm, tmp_path_factory):
    """The model as OpenVINO has it, by what the weights are stored in."""
    folder = tmp_path_factory.mktemp("openvino")
    path = folder / "float32"
    lm.export(path, flavour="openvino", weights="float32", progress=False)
    found = {"float32": path}
    for weights in ("int8", "int4"):
        # as export does it, but for the process in which the graph is built
        found[weights] = folder / weights
        shutil.copytree(path, found[weights])
        graph = openvino.Core().read_model(path / GRAPH_FILE)
        compress_weights(graph, weights)
        openvino.save_model(graph, found[weights] / GRAPH_FILE, compress_to_fp16=False)
        about = json.loads((path / "config.json").read_text())
        about["openvino"]["weights"] = weights
        (found[weights] / "config.json").write_text(json.dumps(about))
    return found


@pytest.fixture(scope="module")
def loaded(folders):
    return keras_gpt.LanguageModel.load(folders["float32"])


def test_scores_are_those_of_keras(lm, loaded):
    for ours, theirs in zip(lm.score(PROMPTS), loaded.score(PROMPTS), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize("controls", [{"temperature": 0}, {"seed": 3}])
def test_text_is_that_of_keras(lm, loaded, controls):
    # rows of unlike length, which outgrow the context
    wanted = lm.generate(PROMPTS, 60, **controls)
    assert loaded.generate(PROMPTS, 60, **controls) == wanted
    assert "".join(loaded.stream(PROMPTS[0], 60, **controls)) == wanted[0]


def test_a_server_of_it_writes_several_texts_at_once(loaded):
    with serve(loaded, num_slots=2, max_tokens=100) as server:
        asked = {"prompt": PROMPTS, "max_tokens": 60, "seed": 3}
        address = f"{server.address}/v1/completions"
        choices = requests.post(address, json=asked).json()["choices"]
        assert [choice["text"] for choice in choices] == loaded.generate(
            PROMPTS, 60, seed=3
        )
        answer = requests.post(address, json={**asked, "presence_penalty": 1})
        assert answer.status_code == 400
        assert "needs a model that Keras runs" in answer.json()["error"]["message"]


def test_what_each_layer_turns_is_one_operation(lm, folders):
    graph = openvino.compile_model(folders["float32"] / GRAPH_FILE, "CPU", EXACT)
    nodes = graph.get_runtime_model().get_ops()
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in nodes]
    assert kinds.count("RoPE") == 2 * lm.model.config.num_layers
    assert kinds.count("ScaledDotProductAttention") == lm.model.config.num_layers


@pytest.mark.parametrize(("weights", "most"), [("int8", 0.1), ("int4", 0.6)])
def test_fewer_bits_take_less_room_and_cost_little(lm, folders, weights, most):
    loaded = keras_gpt.LanguageModel.load(folders[weights])
    assert weights in repr(loaded)
    assert abs(loaded.evaluate(TEXT).loss - lm.evaluate(TEXT).loss) < most
    sizes = {
        name: (folder / GRAPH_FILE).with_suffix(".bin").stat().st_size
        for name, folder in folders.items()
    }
    assert sizes["int4"] < sizes["int8"] < 0.4 * sizes["float32"]


def test_int4_loses_nothing_of_weights_in_16_steps():
    """As those that were read from a GGUF file of Q4_1 are."""
    generator = np.random.default_rng(0)
    steps = generator.integers(16, size=(8, 4, 32))
    steps[..., :2] = [0, 15]  # a group's minimum and maximum
    scale = generator.uniform(0.01, 0.1, (8, 4, 1)).astype("float16").astype("float32")
    least = -8.3 * scale
    values = (least + scale * steps).reshape(8, 128)
    values[0, :64] = [0.0] * 32 + [-0.5] * 32  # groups of one value
    graph = openvino.Model([opset13.result(store_int4(values))], [])
    result = openvino.compile_model(graph, "CPU", EXACT)({})[0]
    # a hundredth of a step: float16 keeps 11 bits of zero point and scale
    np.testing.assert_allclose(result, values, atol=0.01 * scale.max())


def test_openvino_genai_opens_the_folder(lm, folders):
    genai = pytest.importorskip("openvino_genai", reason="pip install openvino-genai")
    pytest.importorskip("openvino_tokenizers", reason="pip install openvino-tokenizers")
    pipeline = genai.LLMPipeline(folders["float32"], "CPU", **EXACT)
    asked = {"max_new_tokens": 12, "do_sample": False, "apply_chat_template": False}
    wanted = lm.generate(PROMPTS[0], 12, temperature=0)
    assert pipeline.generate(PROMPTS[0], **asked) == wanted


def test_two_texts_grow_at_once(loaded):
    wanted = [loaded.generate(prompt, 8, seed=1) for prompt in PROMPTS[:2]]
    streams = [loaded.stream(prompt, 8, seed=1) for prompt in PROMPTS[:2]]
    pieces = list(itertools.zip_longest(*streams, fillvalue=""))
    assert ["".join(parts) for parts in zip(*pieces, strict=True)] == wanted


def test_it_chats_and_evaluates(lm, loaded):
    messages = [{"role": "user", "content": "a dog"}]
    assert loaded.chat(messages, 8) == lm.chat(messages, 8)
    assert loaded.evaluate(TEXT).loss == pytest.approx(lm.evaluate(TEXT).loss, 1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda lm: lm.generate("a", 4, num_beams=2), "neither beams nor lookup"),
        (lambda lm: lm.save("elsewhere"), "can't be written anew"),
    ],
)
def test_what_it_cannot_do_is_refused(loaded, call, words):
    with pytest.raises(ValueError, match=words):
        call(loaded)


INTERRUPTED = """
import signal, sys, threading
import keras_gpt

models = [keras_gpt.LanguageModel.load(sys.argv[1])]
thread = threading.Thread(target=models.clear)
thread.start()
thread.join()
signal.signal(signal.SIGINT, signal.default_int_handler)  # even in the background
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_heard_when_another_thread_was_the_last_to_use_a_model(folders):
    command = [sys.executable, "-c", INTERRUPTED, folders["float32"]]
    assert subprocess.check_output(command, text=True) == "interrupted\n"


def test_it_has_nothing_to_train(loaded):
    with pytest.raises(AttributeError, match="no 'fit'"):
        loaded.model.fit()


def test_what_openvino_has_not_is_refused_before_it_is_built(lm, tmp_path):
    config = dataclasses.replace(lm.model.config, document_separator_id=0)
    packed = keras_gpt.LanguageModel(keras_gpt.GPT(config), lm.tokenizer)
    with pytest.raises(ValueError, match="document_separator_id=0"):
        packed.export(tmp_path / "docs", flavour="openvino")
    with pytest.raises(ValueError, match="weights"):
        lm.export(tmp_path / "docs", flavour="openvino", weights="int3")
    assert not (tmp_path / "docs").exists()
