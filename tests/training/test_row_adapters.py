import dataclasses

import numpy as np
import pytest

import keras_gpt
from keras_gpt import CharacterTokenizer, LanguageModel, training
from keras_gpt.generation import Generation, Slots
from keras_gpt.training.lora import LORA_TARGETS

SETTINGS = {
    "one": {"rank": 2},
    "two": {"rank": 3, "alpha": 4.0, "targets": LORA_TARGETS[:1]},
    "three": {"rank": 1, "targets": LORA_TARGETS[2:]},
}
NAMES = [None, *SETTINGS]
CONFIG = keras_gpt.GPTConfig(
    vocab_size=11,
    context_length=8,
    embedding_dimension=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    position_embedding="rotary",
    activation="swiglu",
    tie_embeddings=False,
    document_separator_id=0,
)
PROMPTS = [[1, 2, 3, 4], [4, 0, 5], [5], [3, 1]]
CONTROLS = {"max_new_tokens": 10, "temperature": 0}  # beyond the context


def fill(layers, seed):
    """Give layers the values of a seed, with which no text repeats one token."""
    random = np.random.default_rng(seed)
    for layer in layers:
        for weight in layer.weights:
            if len(weight.shape) > 1:
                weight.assign(random.normal(scale=0.6, size=weight.shape))


def make_base(**fields):
    model = keras_gpt.GPT(dataclasses.replace(CONFIG, **fields))
    fill([model], 3)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The adapters of such a base."""
    path = tmp_path_factory.mktemp("adapters")
    model = make_base()
    for seed, (name, settings) in enumerate(SETTINGS.items()):
        training.enable_lora(model, **settings)
        fill(model.adapters.layers, seed)
        training.save_adapter(model, path / name)
        training.remove_lora(model)
    return {name: path / name for name in SETTINGS}


def come_and_go(slots, requests):
    """Rows of all requests, which begin as slots are free."""
    rows, waiting = [], list(requests)
    while waiting or None in [row.finish_reason for row in rows]:
        while waiting and slots.num_free:
            prompt, name = waiting.pop(0)
            rows.append(slots.add(prompt, adapter=name, **CONTROLS))
        slots.advance(3)
    return rows


def generate(model, prompts=PROMPTS, **options):
    run = Generation(model, prompts, **options, **CONTROLS)
    run.advance()
    return run


def test_each_row_of_a_batch_is_what_its_merged_model_makes_of_it(folders):
    model = make_base()
    training.load_adapters(model, folders)
    run, plain = generate(model, adapter=NAMES), generate(make_base())
    beams = {"num_beams": 2, "max_new_tokens": 4, "adapter": NAMES}
    by_beams = keras_gpt.generate(model, PROMPTS, **beams)
    drafted = keras_gpt.generate(
        model, PROMPTS, adapter=NAMES, lookup_tokens=2, **CONTROLS
    )
    rows = come_and_go(Slots(model, 2), zip(PROMPTS, NAMES, strict=True))
    assert run.ids == drafted == [row.ids for row in rows]
    assert len(set(map(tuple, run.ids))) == 4
    for i, name in enumerate(NAMES):
        other = make_base()
        if name is not None:
            training.load_adapter(other, folders[name])
            training.merge_lora(other)
        alone = generate(other, PROMPTS[i : i + 1])
        assert run.ids[i] == alone.ids[0]
        # float32: (W + BA) x for W x + B (A x), at logits of about 10
        np.testing.assert_allclose(run.log_probs[i], alone.log_probs[0], atol=1e-4)
        beams = {"num_beams": 2, "max_new_tokens": 4}
        assert by_beams[i : i + 1] == keras_gpt.generate(
            other, PROMPTS[i : i + 1], **beams
        )
    # to the last bit, as 0 is added
    assert run.log_probs[0] == plain.log_probs[0]


def test_what_was_read_with_one_adapter_is_not_reused_with_another():
    model = make_base(context_length=32)
    model.add_adapters({"one": 1, "two": 1}, LORA_TARGETS)
    fill(model.adapters.layers, 4)
    prompt = [int(i) for i in np.random.default_rng(0).integers(11, size=20)]
    slots = Slots(model, 2)
    running = slots.add(prompt, adapter="one", **CONTROLS)
    slots.advance(2)
    rows = []
    for name in ("two", "two", "one", None):
        rows.append(slots.add(prompt, adapter=name, **CONTROLS))
        while rows[-1].finish_reason is None:
            slots.advance(4)
    assert [row.num_reused for row in rows] == [0, 19, 19, 0]
    names = ["one", "two", "two", "one", None]
    wanted = keras_gpt.generate(model, [prompt] * 5, adapter=names, **CONTROLS)
    assert [row.ids for row in (running, *rows)] == wanted
    assert len(set(map(tuple, wanted))) == 3


def test_adapters_stand_beside_int8_weights(folders):
    model, one = make_base(), make_base()
    for each in (model, one):
        each.quantize("int8")
    training.load_adapters(model, folders)
    training.load_adapter(one, folders["two"])
    text = keras_gpt.generate(model, PROMPTS[:1], adapter="two", **CONTROLS)
    assert text == keras_gpt.generate(one, PROMPTS[:1], **CONTROLS)


def test_a_language_model_asks_as_each_adapter_was_tuned(folders, tmp_path):
    tokenizer = CharacterTokenizer("abcdefghijk")
    lm = LanguageModel(make_base(), tokenizer, stop_ids=[1])
    training.load_adapter(lm.model, folders["one"])
    lm.tasks = {"summarize": {"instruction": "Be brief."}}
    lm.stop_ids = (2, 3)
    lm.save_adapter(tmp_path / "one", base="base")
    lm = LanguageModel(make_base(), tokenizer, stop_ids=[1])
    lm.load_adapters({"brief": tmp_path / "one"})
    one = lm.with_adapter("brief")
    assert (lm.task, lm.stop_ids) == ("generate", (1,))
    assert (one.task, one.stop_ids) == ("summarize", (2, 3))
    options = {"temperature": 0, "stop_ids": [], "max_new_tokens": 5}
    mixed = lm.generate(["abc", "abc"], adapter=["brief", None], **options)
    assert mixed == [one.generate("abc", **options), lm.generate("abc", **options)]
    assert mixed[0] != mixed[1]
    # each ends as it was tuned to
    [[new]] = keras_gpt.generate(one.model, [[0, 1, 2]], 1, 0, adapter="brief")
    lm.adapters["brief"]["stop_ids"] = (new,)
    own_ends = {"temperature": 0, "max_new_tokens": 5}
    for adapter in ("brief", ["brief"]):
        [ended] = lm.complete(["abc"], adapter=adapter, **own_ends)
        assert (ended.ids, ended.finish_reason) == ([], "stop")
    mixed_ends = lm.complete(["abc", "abc"], adapter=["brief", None], **own_ends)
    assert mixed_ends[0] == ended
    [alone] = lm.complete(["abc"], **own_ends)
    # sums of float32 in another order
    near = pytest.approx(alone.log_probs, abs=1e-5)
    assert mixed_ends[1] == dataclasses.replace(alone, log_probs=near)

    lm.save(tmp_path / "both")
    loaded = LanguageModel.load(tmp_path / "both")
    assert loaded.adapters == lm.adapters
    assert loaded.generate(["abc"] * 2, adapter=["brief", None], **options) == mixed
    with pytest.raises(ValueError, match="which this format hasn't: brief"):
        lm.save_gguf(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"Unknown `adapter`.*brief"):
        lm.with_adapter("long")
    with pytest.raises(ValueError, match="its tokenizer is another"):
        LanguageModel(make_base(), CharacterTokenizer("abcd")).load_adapters(
            {"brief": tmp_path / "one"}
        )


def test_what_does_not_fit_is_refused(folders):
    model = make_base()
    with pytest.raises(ValueError, match=r"must be None or .*: none\. Received: 'one'"):
        keras_gpt.generate(model, [[1]], adapter="one")
    with pytest.raises(ValueError, match="folders by their names, of which none is"):
        training.load_adapters(model, {"": folders["one"]})
    training.load_adapters(model, folders)
    with pytest.raises(ValueError, match=r"'two', 'three'\. Received: 'four'"):
        Slots(model).add([1], adapter="four")
    with pytest.raises(ValueError, match="one for each of the 2 prompts"):
        keras_gpt.generate(model, [[1], [2]], adapter=["one"])
    with pytest.raises(ValueError, match="choose among its adapters: one, two, three"):
        training.enable_lora(model)
    with pytest.raises(ValueError, match="isn't saved as a whole"):
        model.get_config()
    training.load_adapters(model, {"new": folders["one"]})  # in place of the others
    assert list(model.adapters.ranks) == ["new"]
    assert len(model.adapters.layers) == 8
    training.remove_adapters(model)
    training.enable_lora(model)
    with pytest.raises(ValueError, match="has an adapter that trains"):
        training.load_adapters(model, folders)
    with pytest.raises(ValueError, match="another base: its architecture"):
        training.load_adapters(make_base(context_length=9), folders)
