"""Exported models, answered by TensorFlow's C API without Python, as on a server."""

import gc
import json
import re
import resource
import sys

import keras
import numpy as np
import pytest

from keras_gpt import GPT, BytePairTokenizer, CharacterTokenizer, LanguageModel
from keras_gpt.export.saved_model import next_version_path
from keras_gpt.generation import Generation
from keras_gpt.language_model.completion import encode_messages
from keras_gpt.tokenizers import ChatTemplate
from tests.export.answer import answer
from tests.export.conftest import CONTEXT_LENGTH, MAX_NEW_TOKENS, TEXT, graph_ops
from tests.export.templates import as_inputs, make_conversations, special_tokens

# Each architecture on TensorFlow. Elsewhere a process of TensorFlow reads what was
# saved: one from PyTorch, and none from JAX, which saves the same (test_backends.py)
CHAT = ("llama", "chat")
SIGNATURES = {
    "serving_default",
    "chat",
    "chat_with_controls",
    "summarize",
    "translate",
    "generate",
    "generate_ids",
    "score",
    "tokenize",
}
PAIRS = [("gpt2", "byte_pairs"), ("llama", "sentence_piece")]
HERE = {"tensorflow": PAIRS, "jax": [], "torch": [CHAT]}[keras.backend.backend()]


def not_on_jax(test):
    skip = pytest.mark.skipif(
        keras.backend.backend() == "jax", reason="exported as on PyTorch"
    )
    return pytest.mark.every_backend(skip(test))


# Files are the same whichever backend wrote the weights: what is in them is tested
# where no process of its own has to be waited for
def in_process(test):
    skip = pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="tested on TensorFlow"
    )
    return pytest.mark.every_backend(skip(test))


@pytest.fixture(params=HERE, ids="-".join)
def exported(request, export_once):
    """A language model and the folder that it was exported to."""
    return export_once(*request.param)


@pytest.fixture
def small(export_once):
    """One of them, for what doesn't depend on the kind."""
    return export_once()


def prompts_for(lm):
    """50 prompts: ragged, Unicode, empty, as long as the context, repeated."""
    texts = ["", TEXT[:1], "12", "naïve café", "你好", "  a", " ", "мир! It's"]
    texts += [TEXT[n : n + n % 30] for n in range(40)] + [TEXT, TEXT]
    return [_shorten(lm, text) for text in texts]


def _shorten(lm, text):
    context_length = lm.model.config.context_length
    while len(lm.tokenizer.encode(text)) > context_length:
        text = text[: min(len(text), 9 * context_length) - 1]
    return text


def controls(rows, **given):
    defaults = {
        "max_new_tokens": MAX_NEW_TOKENS,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
    }
    spread = {**defaults, **given}
    return {
        name: value if isinstance(value, list) else [value] * rows
        for name, value in spread.items()
    }


@pytest.mark.every_backend
def test_served_text_equals_generated_text(exported):
    lm, folder = exported
    prompts = prompts_for(lm)
    rows = len(prompts)
    # seeds of which no draw is so near to the edge of two tokens that sums in another
    # order (3e-6 of the largest logit) decide: else a row in 50 may differ by processor
    seeds = list(range(400, 400 + rows))
    sampling = {"temperature": 1.0, "top_k": 20, "top_p": 0.9}
    greedy, sampled, again, other, alone, score, tokens = answer(
        folder,
        [
            ["generate", {"prompt": prompts, **controls(rows)}],
            ["generate", {"prompt": prompts, **controls(rows, seed=seeds, **sampling)}],
            ["generate", {"prompt": prompts, **controls(rows, seed=seeds, **sampling)}],
            ["generate", {"prompt": prompts, **controls(rows, seed=99, **sampling)}],
            [
                "generate",
                {"prompt": prompts[9:10], **controls(1, seed=seeds[9], **sampling)},
            ],
            ["score", {"text": prompts}],
            ["tokenize", {"text": prompts}],
        ],
    )
    wanted = lm.complete(prompts, MAX_NEW_TOKENS, temperature=0)
    assert greedy["text"] == [completion.text for completion in wanted]
    assert greedy["finish_reason"] == [c.finish_reason for c in wanted]
    assert greedy["num_tokens"] == [len(c.ids) for c in wanted]
    assert {"length"} <= set(greedy["finish_reason"])
    # some rows outgrew the context, so that it was read anew
    lengths = [len(lm.tokenizer.encode(prompt)) for prompt in prompts]
    context_length = lm.model.config.context_length
    assert (rows, max(lengths)) == (50, context_length)
    grown = np.add(lengths, greedy["num_tokens"]) > context_length
    assert grown.any()

    # the uniforms are the same bits, so a seed gives the same text
    generated = lm.generate(prompts, MAX_NEW_TOKENS, seed=seeds[0], **sampling)
    assert sampled["text"] == generated
    assert sampled == again
    assert sampled["text"] != other["text"]
    assert alone["text"] == sampled["text"][9:10]

    # float32 sums in another order: 1e-5 of logits up to some tens
    for row, log_probs in enumerate(lm.score(prompts)):
        got = score["log_probs"][row][: len(log_probs)]
        np.testing.assert_allclose(got, log_probs, atol=1e-4)
        assert not any(score["log_probs"][row][len(log_probs) :])
    for ids, padded, number in zip(
        lm.tokenizer.encode_batch(prompts),
        tokens["token_ids"],
        tokens["num_tokens"],
        strict=True,
    ):
        assert padded[:number] == ids
        assert set(padded[number:]) <= {-1}


@not_on_jax
def test_chats_are_answered_as_in_process(export_once):
    lm, folder = export_once(*CHAT)
    rows = 16
    conversations = make_conversations(rows, special_tokens("smollm"))
    # the model's own controls for some, others for the rest
    sampled = controls(rows, temperature=1.0, top_k=40, seed=5)
    mixed = {name: [-1] * 4 + values[4:] for name, values in sampled.items()}
    chat, chosen = answer(
        folder,
        [
            ["chat", as_inputs(conversations)],
            ["chat_with_controls", {**as_inputs(conversations), **mixed}],
        ],
    )
    ids = [encode_messages(lm, c, MAX_NEW_TOKENS) for c in conversations]
    assert chat["text"] == lm.generate_from_ids(ids, MAX_NEW_TOKENS, temperature=0)
    assert chosen["text"][:4] == chat["text"][:4]
    options = {"temperature": 1.0, "seed": [5] * rows}
    at_random = lm.generate_from_ids(ids, MAX_NEW_TOKENS, **options)
    assert chosen["text"][4:] == at_random[4:]


@in_process
def test_tasks_are_done_as_in_process(export_once):
    lm, folder = export_once(*CHAT)
    texts = ["Once upon a time.", "", TEXT[:450], " \u2003It's so.\n\n你好 " * 4]
    there = {"source": ["en"] * 4, "target": ["de"] * 4}
    default, summaries, translations = answer(
        folder,
        [
            ["serving_default", {"prompt": texts[:2]}],
            ["summarize", {"text": texts}],
            ["translate", {"text": texts, **there}],
        ],
    )
    greedy = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 0}
    assert default["text"] == lm.answer(texts[:2], **greedy)
    question = [{"role": "user", "content": f"Go on.\n\n{texts[0]}"}]
    assert default["text"][0] == lm.chat(question, **greedy)
    assert summaries["text"] == lm.summarize(texts, MAX_NEW_TOKENS)
    assert translations["text"] == lm.translate(
        texts, MAX_NEW_TOKENS, source="en", target="de"
    )
    # long texts were cut
    assert summaries["num_parts"][2] > 1
    assert translations["num_parts"][3] > 1


@pytest.mark.every_backend
def test_graph_has_only_operations_of_the_stock_server(exported):
    _, folder = exported
    ops = graph_ops(folder)
    # XLA's fail when the graph runs, Python's have no Python
    assert not [op for op in ops if re.search("Xla|PyFunc|JitCompile", op)]
    assert "While" in ops or "StatelessWhile" in ops


@in_process
def test_served_ids_equal_generated_ids(small):
    lm, folder = small
    prompts = [[5], [1, 2, 3], list(range(CONTEXT_LENGTH)), [9, 9]]
    width = max(map(len, prompts))
    # what stands behind a row's length is ignored, also what no id can be
    padded = [row + [-7] * (width - len(row)) for row in prompts]
    rows = {"token_ids": padded, "lengths": [len(row) for row in prompts]}
    lengths = [0, 3, MAX_NEW_TOKENS, MAX_NEW_TOKENS]
    [got] = answer(
        folder, [["generate_ids", {**rows, **controls(4, max_new_tokens=lengths)}]]
    )
    run = Generation(
        lm.model, prompts, max_new_tokens=lengths, temperature=0, stop_ids=lm.stop_ids
    )
    run.advance()
    for row, ids in enumerate(run.ids):
        assert got["num_tokens"][row] == len(ids)
        assert got["token_ids"][row] == ids + [-1] * (MAX_NEW_TOKENS - len(ids))
        np.testing.assert_allclose(
            got["log_probs"][row][: len(ids)], run.log_probs[row], atol=1e-4
        )


@in_process
def test_bad_requests_fail_with_a_reason_and_the_next_is_served(small):
    _, folder = small
    too_long = " ".join(["cat"] * 40)
    cases = {
        "`prompt` is longer than 24 tokens": [
            "generate",
            {"prompt": [too_long], **controls(1)},
        ],
        "`text` is longer than 25": ["score", {"text": [too_long]}],
        "of at least one row": ["generate", {"prompt": [], **controls(0)}],
        "`text` must have at least one row": ["score", {"text": []}],
        "`seed` must have one value for each": [
            "generate",
            {"prompt": ["a", "b"], **controls(2, seed=[1])},
        ],
        "`lengths` must be from 1": [
            "generate_ids",
            {"token_ids": [[1, 2]], "lengths": [3], **controls(1)},
        ],
        "`token_ids` must be from 0": [
            "generate_ids",
            {"token_ids": [[1, -2]], "lengths": [2], **controls(1)},
        ],
    }
    bad_controls = {
        "`max_new_tokens` must be an integer of at least 0 and at most 12": {
            "max_new_tokens": 13
        },
        "`temperature` must be a number of at least 0": {"temperature": float("nan")},
        "`top_k` must be an integer of at least 0": {"top_k": -2},
        "`top_p` must be a number above 0 and at most 1": {"top_p": 0.0},
        "`seed` must be an integer of at least 0, or -1": {"seed": -2},
    }
    for message, bad in bad_controls.items():
        cases[message] = ["generate", {"prompt": ["a"], **controls(1, **bad)}]
    good = ["serving_default", {"prompt": ["a"]}]
    answers = answer(folder, [good, *[r for c in cases.values() for r in (c, good)]])
    first = answers.pop(0)
    for message, failed, served in zip(cases, answers[::2], answers[1::2], strict=True):
        assert message in failed["error"]
        assert served == first


@pytest.fixture(scope="module")
def started(make_language_model, tmp_path_factory):
    """A model with adapters and defaults, whose texts start with a token, exported."""
    lm = make_language_model(num_layers=1)
    name, token_id = "<|endoftext|>", lm.tokenizer.end_of_text_id
    content = json.loads(lm.tokenizer.to_json())
    text = {"Sequence": {"id": "A", "type_id": 0}}
    start = {"SpecialToken": {"id": name, "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [token_id], "tokens": [name]}},
    }
    lm = LanguageModel(lm.model, BytePairTokenizer(json.dumps(content)))
    assert lm.tokenizer.start_ids == [token_id]
    lm.model.add_adapters({"low": 1, "high": 2}, ["up_projection"])
    random = np.random.default_rng(0)
    for weight in lm.model.adapters.weights:
        weight.assign(random.normal(size=weight.shape))
    lm.adapters = {"low": {}, "high": {"stop_ids": (40, 41, 42)}}
    lm.generation_defaults = {"temperature": 0.7, "repetition_penalty": 1.3}
    lm.chat_template = ChatTemplate("{{ messages[-1].content | upper }}")
    parent = tmp_path_factory.mktemp("served")
    options = {"next_version": True, "progress": False}
    with pytest.raises(ValueError, match=r"can't be exported.*default='generate'"):
        lm.export(parent, **options)
    # without what needs the template
    folder = lm.export(parent, default="generate", max_new_tokens=9, seed=5, **options)
    assert folder == parent / "1"
    return lm, folder


@in_process
def test_defaults_of_the_default_signature(started):
    lm, folder = started
    [got] = answer(folder, [["serving_default", {"prompt": ["Once", "It's"]}]])
    wanted = [lm.generate(text, 9, seed=5) for text in ("Once", "It's")]
    assert got["text"] == wanted


@in_process
def test_start_tokens_come_before_every_prompt(started):
    lm, folder = started
    prompts = ["Once", "", "a cat sat"]
    asked = {"prompt": prompts, **controls(3, max_new_tokens=8), "adapter": [""] * 3}
    got, score = answer(folder, [["generate", asked], ["score", {"text": prompts}]])
    assert got["text"] == lm.generate(prompts, 8, temperature=0)
    np.testing.assert_allclose(
        score["log_probs"][0][: score["num_tokens"][0] - 1],
        lm.score("Once"),
        atol=1e-4,
    )


@in_process
def test_each_row_is_written_by_the_adapter_that_it_names(started):
    lm, folder = started
    names = ["", "low", "high"]
    asked = {"prompt": ["Once"] * 3, **controls(3, max_new_tokens=8), "adapter": names}
    wrong = asked | {"adapter": ["", "tall", "high"]}
    mixed, refused = answer(folder, [["generate", asked], ["generate", wrong]])
    assert "`adapter` must be empty or one of low, high" in refused["error"]
    # which is what merged models write: test_row_adapters.py
    models = lm, lm.with_adapter("low"), lm.with_adapter("high")
    wanted = [model.generate(["Once"] * 3, 8, temperature=0)[0] for model in models]
    assert mixed["text"] == wanted
    assert len(set(wanted)) == 3
    with pytest.raises(ValueError, match="not the one of with_adapter"):
        models[1].export(folder.parent / "2", default="generate", progress=False)


@in_process
def test_empty_prompt_is_refused_where_no_token_starts_a_text(
    make_language_model, tmp_path
):
    lm = make_language_model("llama", "characters", num_layers=1)
    tokenizer = CharacterTokenizer.train([TEXT], progress=False)
    lm = LanguageModel(lm.model, tokenizer)
    lm.export(tmp_path / "1", max_new_tokens=8, progress=False)
    requests = [["serving_default", {"prompt": [text]}] for text in ("", "\x07", "a")]
    empty, unknown, good = answer(tmp_path / "1", requests)
    assert "`prompt` must not be empty" in empty["error"]
    assert "character that is not in the vocabulary" in unknown["error"]
    assert good["num_tokens"] == [8]


@pytest.fixture
def frozen():
    """Keras collects garbage for each layer that it quantizes: little, in a test."""
    gc.freeze()
    yield
    gc.unfreeze()


@in_process
@pytest.mark.usefixtures("frozen")
def test_weights_in_fewer_bits_take_less_room(make_language_model, tmp_path):
    lm = make_language_model("llama", "characters", num_layers=1)
    folders = {}
    for weights in ("float32", "bfloat16", "int8"):
        folders[weights] = tmp_path / weights / "1"
        lm.export(folders[weights], max_new_tokens=8, weights=weights, progress=False)
    sizes = {}
    for weights, folder in folders.items():
        [file] = (folder / "variables").glob("*.data-*")
        sizes[weights] = file.stat().st_size
        card = (folder / "README.md").read_text()
        cost = re.search(rf"weights in {weights}, which adds ([+-]0\.\d+) nats", card)
        assert (cost is None) == (weights == "float32")
    # biases and norms stay float32, int8 has a float32 for each column
    assert sizes["bfloat16"] < 0.55 * sizes["float32"]
    assert sizes["int8"] < 0.45 * sizes["float32"]
    quantized = LanguageModel(clone(lm.model), lm.tokenizer)
    quantized.quantize("int8")
    folders["quantized"] = tmp_path / "quantized" / "1"
    quantized.export(folders["quantized"], max_new_tokens=8, progress=False)
    prompts = ["Once", "naïve", "12"]
    wanted = quantized.generate(prompts, 8, temperature=0)
    request = ["generate", {"prompt": prompts, **controls(3, max_new_tokens=8)}]
    for name in ("int8", "quantized"):
        [got] = answer(folders[name], [request])
        assert got["text"] == wanted
    # of bfloat16 it is enough that it answers
    [got] = answer(folders["bfloat16"], [request])
    assert len(got["text"]) == 3


def clone(model):
    copy = GPT.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


@in_process
def test_xla_flavour_gives_the_same_text_where_xla_is_on(make_language_model, tmp_path):
    lm = make_language_model(num_layers=1)
    lm.export(tmp_path / "1", max_new_tokens=20, flavour="xla", progress=False)
    prompts = ["Once upon", "", "12"]
    request = ["generate", {"prompt": prompts, **controls(3, max_new_tokens=20)}]
    [got] = answer(tmp_path / "1", [request], xla=True)
    assert got["text"] == lm.generate(prompts, 20, temperature=0)
    [refused] = answer(tmp_path / "1", [request])
    assert "XLA" in refused["error"] or "xla" in refused["error"]
    card = (tmp_path / "1" / "README.md").read_text()
    assert "--xla_cpu_compilation_enabled=true" in card


@in_process
def test_warm_up_requests_are_answered(export_once):
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    _, folder = export_once(*CHAT)
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    requests = []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        request = log.predict_log.request
        inputs = {}
        for name, value in request.inputs.items():
            array = tf.make_ndarray(value)
            is_text = array.dtype == object
            inputs[name] = (
                np.char.decode(array.astype(bytes)) if is_text else array
            ).tolist()
        requests.append([request.model_spec.signature_name, inputs])
    assert {name for name, _ in requests} == SIGNATURES
    batch_sizes = {len(r["prompt"]) for name, r in requests if name == "generate"}
    assert batch_sizes == {1, 8, 32}
    assert all("error" not in got for got in answer(folder, requests))


@in_process
def test_requests_of_the_model_card_are_answered(export_once):
    lm, folder = export_once(*CHAT)
    card = (folder / "README.md").read_text()
    bodies = [json.loads(body) for body in re.findall(r"-d '(.*)'", card)]
    requests = []
    for body in bodies:
        [row] = body["instances"]
        if isinstance(row, str):
            is_default = "signature_name" not in body
            row = {"prompt" if is_default else "text": row}
        inputs = {name: [value] for name, value in row.items()}
        requests.append([body.get("signature_name", "serving_default"), inputs])
    assert {name for name, _ in requests} == SIGNATURES
    # how the model was told what to do is there, too
    assert lm.chat_template.template in card
    assert "summarize: 'Be brief.'" in card
    assert all("error" not in got for got in answer(folder, requests))


@in_process
def test_the_model_card_says_how_to_load_it_in_python(export_once, monkeypatch, capsys):
    lm, folder = export_once(*CHAT)
    code = re.search("```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    assert code.index("import tensorflow_text") < code.index("saved_model.load")
    monkeypatch.chdir(folder)
    exec(code, {})
    said = lm.answer("Once upon a time", MAX_NEW_TOKENS, temperature=0)
    assert capsys.readouterr().out == f"{said}\n"


def test_existing_version_is_refused_and_the_next_is_found(exported):
    lm, folder = exported
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(FileExistsError, match="next_version=True"):
        lm.export(folder)
    assert sorted(path.name for path in folder.rglob("*")) == before
    for name in ("7", "notes", ".9.partial.8"):
        (folder.parent / name).mkdir()
    assert next_version_path(folder.parent) == folder.parent / "8"


def test_failed_export_leaves_nothing(make_language_model, tmp_path):
    lm = make_language_model()
    content = json.loads(lm.tokenizer.to_json())
    content["normalizer"] = {"type": "NFKC"}
    tokenizer = type(lm.tokenizer)(json.dumps(content))
    lm = LanguageModel(lm.model, tokenizer)
    with pytest.raises(ValueError, match="NFKC"):
        lm.export(tmp_path / "docs" / "1", progress=False)
    assert list((tmp_path / "docs").iterdir()) == []


@in_process
@pytest.mark.parametrize("room", [1000, 100_000])  # the weights, or the graph
def test_full_disk_is_named_and_leaves_nothing(make_language_model, tmp_path, room):
    lm = make_language_model(num_layers=1)
    folder = tmp_path / "docs" / "1"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{folder} can't be written: .* Make room"):
            lm.export(folder, max_new_tokens=8, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(folder.parent.iterdir()) == []


@in_process
def test_a_served_answer_of_a_form_is_what_generate_writes(
    make_language_model, tmp_path
):
    lm = make_language_model(num_layers=1)
    form = {"regex": "(cat|mat)s?( on [12]{2}|;){0,4}"}
    lm.export(tmp_path / "1", max_new_tokens=40, progress=False, **form)
    sampling = {"temperature": [0.0, 1.2, 1.2], "seed": [0, 1, 2]}
    prompts = ["Once upon", "12", "a cat"]
    most = [40, 40, 3]
    request = ["generate", {"prompt": prompts, **controls(3, **sampling)}]
    request[1]["max_new_tokens"] = most
    [got] = answer(tmp_path / "1", [request])
    wanted = lm.complete(
        prompts[:2],
        40,
        **form,
        top_k=None,
        **{name: values[:2] for name, values in sampling.items()},
    )
    assert got["text"][:2] == [completion.text for completion in wanted]
    assert got["finish_reason"] == ["stop", "stop", "length"]
    assert re.match("(c|m|ca|ma|cat|mat)s?", got["text"][2])
    assert "texts that match `(cat" in (tmp_path / "1" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be an integer of at least 1"),
        ({"max_prompt_tokens": 25}, "`max_prompt_tokens` .* at most 24"),
        ({"temperature": float("nan")}, "`temperature` must be"),
        ({"top_k": 1.5}, "`top_k` must be an integer"),
        ({"top_p": 0}, "`top_p` must be a number above 0"),
        ({"seed": 2**31}, "`seed` must be an integer .* at most 2147483647"),
        ({"weights": "int4"}, "Unknown `weights`.*int8"),
        ({"flavour": "jit"}, "Unknown `flavour`.*stock"),
        ({"batch_sizes": [0]}, "`batch_sizes` must be an integer of at least 1"),
        ({"stop_ids": [1000]}, "stop_ids"),
        ({"top_kk": 3}, "Did you mean 'top_k'"),
        ({"default": "summarise"}, "Unknown `default`.*'summarize'"),
        ({"default": "chat"}, "can't chat: it was neither tuned for it nor"),
    ],
)
def test_bad_options_are_refused(make_language_model, tmp_path, options, message):
    lm = make_language_model()
    with pytest.raises((TypeError, ValueError), match=message):
        lm.export(tmp_path / "1", **options)
    assert list(tmp_path.iterdir()) == []


def test_int4_weights_are_refused(make_language_model, tmp_path):
    lm = make_language_model()
    lm.quantize("int4")
    with pytest.raises(ValueError, match=r"whose weights are int4.*weights='int8'"):
        lm.export(tmp_path / "1", progress=False)
    assert list(tmp_path.iterdir()) == []


@in_process
def test_model_that_was_tuned_for_one_pair_needs_the_text_alone(
    make_language_model, tmp_path
):
    lm = make_language_model("llama", context_length=96, num_layers=1)
    lm.tasks = {"translate": {"languages": [["en", "de"]]}}
    lm.export(tmp_path / "1", max_new_tokens=9, progress=False)
    texts = ["Once upon", TEXT[:150]]
    [got] = answer(tmp_path / "1", [["serving_default", {"prompt": texts}]])
    assert got["text"] == lm.answer(texts, 9)
    assert got["num_parts"][1] > 1


def test_no_room_for_a_message_or_a_task_is_told(make_language_model, tmp_path):
    lm = make_language_model("gpt2", "chat", context_length=48)
    with pytest.raises(ValueError, match=r"the chat template takes \d+ tokens"):
        lm.export(tmp_path / "1", max_prompt_tokens=30)
    lm.chat_template, lm.tasks = None, {"chat": {}, "summarize": {}}
    with pytest.raises(ValueError, match="can't chat"):
        lm.export(tmp_path / "1", default="chat")
    with pytest.raises(ValueError, match=r"no room to summarize.* Lower"):
        lm.export(tmp_path / "1", max_new_tokens=45, progress=False)
    assert list(tmp_path.rglob("1")) == []


def test_missing_tensorflow_text_is_named(make_language_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    with pytest.raises(ImportError, match=r"keras-gpt\[tensorflow\]"):
        make_language_model().export(tmp_path / "1")
