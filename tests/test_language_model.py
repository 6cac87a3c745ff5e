import dataclasses
import json
import math
import resource
import shutil

import h5py
import numpy as np
import pytest
from keras import ops

from keras_gpt import (
    GPT,
    BytePairTokenizer,
    CharacterTokenizer,
    GPTConfig,
    LanguageModel,
    generate,
)
from keras_gpt.generation import Slots

END = "<|endoftext|>"
TEXT = "the cat sat on the mat, the cat ate. café 猫🐈!\n"
SIZES = {
    "context_length": 32,
    "embedding_dimension": 16,
    "num_layers": 2,
    "num_heads": 2,
}


def make(tokenizer, seed=0, **fields):
    """A model whose weights are large enough for lively text."""
    config = GPTConfig(**{"vocab_size": tokenizer.vocab_size, **SIZES, **fields})
    model = GPT(config)
    random = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        values = random.normal(scale=0.5, size=variable.shape)
        variable.assign(values.astype("float32"))
    return LanguageModel(model, tokenizer)


@pytest.fixture(scope="module")
def lm():
    """Byte-pair tokens: few merges, so that many characters are split."""
    tokenizer = BytePairTokenizer.train([TEXT] * 9, 270, special_tokens=[END])
    return make(tokenizer)


@pytest.fixture(scope="module")
def characters():
    """Characters without an end-of-text token."""
    return make(CharacterTokenizer.train([TEXT]))


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    lm.save(folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the saved folder, to damage."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def scripted(lm):
    """A function: a model that, whatever it reads, says the given ids in their order.

    Each position has a channel of its own, and the channel's next token is the only
    likely one. Prompts have one token.
    """
    config = GPTConfig(
        vocab_size=lm.tokenizer.vocab_size,
        context_length=32,
        embedding_dimension=32,
        num_layers=1,
        num_heads=1,
        tie_embeddings=False,
    )
    model = GPT(config)
    for variable in model.trainable_variables:
        variable.assign(ops.zeros(variable.shape))
    model.final_norm.gamma.assign(ops.ones(32))
    model.embedding.positions.embeddings.assign(ops.eye(32))

    def script(ids):
        matrix = np.zeros((32, config.vocab_size), "float32")
        matrix[np.arange(len(ids)), ids] = 9
        model.embedding.tokens.reverse_embeddings.assign(matrix)
        return LanguageModel(model, lm.tokenizer)

    return script


def say(lm, text):
    """Ids of a text, one for each byte: no character of several bytes is whole."""
    single = {lm.tokenizer.decode_bytes([i]): i for i in range(256)}
    return [single[bytes([byte])] for byte in text.encode()]


GREEDY = {"temperature": 0, "max_new_tokens": 12}
SAMPLED = {"temperature": 1.2, "top_k": None, "max_new_tokens": 40}


# -- on disk


@pytest.mark.every_backend
def test_a_saved_model_comes_back_the_same(lm, folder):
    loaded = LanguageModel.load(folder)
    assert loaded.model.config == lm.model.config
    assert loaded.tokenizer.fingerprint == lm.tokenizer.fingerprint
    for ours, theirs in zip(lm.model.weights, loaded.model.weights, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs)
        )
    assert loaded.generate("the ", **SAMPLED) == lm.generate("the ", **SAMPLED)


def test_the_folder_holds_weights_tokenizer_and_configuration(lm, folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert names == {
        "config.json",
        "model.weights.h5",
        "tokenizer",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }
    description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert description["model"] == dataclasses.asdict(lm.model.config)


def test_a_trained_model_is_saved_without_its_optimizer(characters, tmp_path):
    trained = make(characters.tokenizer)
    trained.model.compile(jit_compile=False)
    ids = np.zeros((2, 3), "int32")
    trained.model.fit(ids, ids, verbose=0)
    optimizer = trained.model.optimizer
    trained.save(tmp_path)
    assert trained.model.optimizer is optimizer
    with h5py.File(tmp_path / "model.weights.h5") as file:
        assert "optimizer" not in file


@pytest.mark.every_backend
def test_the_dtype_is_saved_and_can_be_chosen(characters, tmp_path):
    config = characters.model.config
    half = LanguageModel(GPT(config, dtype="mixed_bfloat16"), characters.tokenizer)
    half.save(tmp_path)
    assert LanguageModel.load(tmp_path).model.dtype_policy.name == "mixed_bfloat16"
    for name in ("float32", "bfloat16"):
        loaded = LanguageModel.load(tmp_path, dtype=name)
        assert loaded.model.dtype_policy.name == name
        assert {v.dtype for v in loaded.model.trainable_variables} == {name}
        assert np.isfinite(loaded.score("the")).all()


def test_a_folder_without_a_model_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=f"no model in {path}: config.json"):
            LanguageModel.load(path)


@pytest.mark.parametrize("name", ["model.weights.h5", "tokenizer/tokenizer.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}.* missing"):
        LanguageModel.load(copy)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_truncated_weights_are_refused(copy, kept):
    path = copy / "model.weights.h5"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"model\.weights\.h5 can't be read.*trunc"):
        LanguageModel.load(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", '{"model": {"vocab'])
def test_broken_json_is_refused_by_name(copy, name, content):
    (copy / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} is not valid JSON.*truncated"):
        LanguageModel.load(copy)


def change(path, **fields):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **fields}), encoding="utf-8")


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": 1}'])
def test_json_that_is_no_description_is_refused_by_name(copy, content):
    (copy / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"copy/config\.json"):
        LanguageModel.load(copy)


def test_another_format_is_refused(copy):
    change(copy / "config.json", format=2)
    with pytest.raises(ValueError, match=r"has format 2; .* reads format 1"):
        LanguageModel.load(copy)


def test_another_tokenizer_is_refused(copy):
    shutil.rmtree(copy / "tokenizer")
    BytePairTokenizer.train([TEXT], 270).save(copy / "tokenizer")
    with pytest.raises(ValueError, match=r"tokenizer in .* isn't the one"):
        LanguageModel.load(copy)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_layers": 3},
        {"num_layers": 1},
        {"embedding_dimension": 32},
        {"feed_forward_dimension": 17},
        {"position_embedding": "rotary"},
        {"normalization": "rms_norm"},
        {"activation": "swiglu"},
        {"use_bias": False},
        {"tie_embeddings": False},
        {"context_length": 16},
        {"vocab_size": 300},
    ],
)
def test_weights_of_another_architecture_are_refused(lm, copy, fields):
    model = dataclasses.asdict(dataclasses.replace(lm.model.config, **fields))
    change(copy / "config.json", model=model)
    with pytest.raises(
        ValueError, match=r"model\.weights\.h5 holds the weights of another arch"
    ):
        LanguageModel.load(copy)


def test_an_unknown_field_of_the_configuration_is_refused(copy):
    change(copy / "config.json", model={"num_layer": 2})
    with pytest.raises(ValueError, match=r"'num_layer'\. Did you mean 'num_layers'"):
        LanguageModel.load(copy)


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("room", [0, 20_000])
def test_a_full_disk_leaves_the_old_model_and_nothing_half_written(copy, room):
    before = files(copy)
    # another tokenizer and architecture: a mixture of old and new would not load
    other = make(CharacterTokenizer.train([TEXT]), 1, num_layers=3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            other.save(copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(copy) == before
    LanguageModel.load(copy)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(lm, characters):
    with pytest.raises(ValueError, match=r"more ids than the model.*vocab_size=270"):
        LanguageModel(characters.model, lm.tokenizer)


# -- in use


@pytest.mark.every_backend
def test_generated_text_is_the_new_ids_decoded(lm):
    ids = lm.tokenizer.encode("the ")
    [new] = generate(lm.model, [ids], 20, temperature=0)
    text = lm.generate("the ", 20, temperature=0, stop_ids=())
    assert text == lm.tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.every_backend
def test_streamed_pieces_join_to_the_generated_text(lm):
    for seed in range(4):
        pieces = list(lm.stream("the ", seed=seed, **SAMPLED))
        assert len(pieces) > 3
        assert "".join(pieces) == lm.generate("the ", seed=seed, **SAMPLED)


def test_pieces_split_no_character(lm, scripted):
    speaker = scripted(say(lm, "é猫🐈abc"))
    pieces = list(speaker.stream("x", **GREEDY))
    assert pieces == ["é", "猫", "🐈", "a", "b", "c"]
    # cut off inside a character: what there is of it is one replacement character
    assert list(speaker.stream("x", 4, temperature=0)) == ["é", "\ufffd"]


def test_stop_strings_span_tokens_and_are_left_out(lm, scripted):
    speaker = scripted(say(lm, "ab--c---d-éf"))
    for stop, expected in (("---", "ab--c"), (["d-é", "zz"], "ab--c---"), ("a", "")):
        assert speaker.generate("x", stop=stop, **GREEDY) == expected
        assert "".join(speaker.stream("x", stop=stop, **GREEDY)) == expected
        [completion] = speaker.complete("x", stop=stop, **GREEDY)
        assert (completion.text, completion.finish_reason) == (expected, "stop")
    assert speaker.generate("x", stop="-d-d", **GREEDY) == "ab--c---d-é"


def test_a_streamed_piece_holds_nothing_of_a_stop_string(lm, scripted):
    speaker = scripted(say(lm, "ab--c---d"))
    pieces = list(speaker.stream("x", stop="---", **GREEDY))
    assert pieces == ["a", "b", "--c"]


def test_text_in_slots_is_the_same_and_leaves_its_slot(lm, scripted):
    slots = Slots(lm.model, num_slots=1)
    pieces = lm.stream("the ", slots=slots, **SAMPLED)
    assert "".join(pieces) == lm.generate("the ", **SAMPLED)
    pieces = lm.stream("the ", slots=slots, **SAMPLED)
    next(pieces)
    assert slots.num_free == 0
    pieces.close()
    assert slots.num_free == 1
    # before a stop string more may be held back than is shown
    speaker = scripted(say(lm, "ab--c---d"))
    slots = Slots(speaker.model, num_slots=1)
    pieces = speaker.stream("x", stop="---", slots=slots, **GREEDY)
    assert list(pieces) == ["a", "b", "--c"]
    assert slots.num_free == 1


def test_rows_of_a_batch_stop_on_their_own(characters):
    prompts = ["the ", "cat", "mat, "]
    alone = [characters.generate(p, 40, temperature=0) for p in prompts]
    stop = alone[1][5:8]
    together = characters.generate(prompts, 40, temperature=0, stop=stop)
    assert together == [text.split(stop)[0] for text in alone]
    assert len(together[1]) <= 5


@pytest.mark.parametrize("stop", ["", ["a", ""], [3]])
def test_stop_strings_must_be_texts(lm, stop):
    with pytest.raises(ValueError, match="`stop` must be non-empty strings"):
        lm.generate("the", stop=stop)


def test_the_end_of_text_token_ends_the_text(lm, scripted):
    end = lm.tokenizer.end_of_text_id
    speaker = scripted([*say(lm, "abc"), end, *say(lm, "de")])
    [completion] = speaker.complete("x", **GREEDY)
    assert completion.text == "abc"
    assert completion.ids == say(lm, "abc")
    assert completion.finish_reason == "stop"
    assert "".join(speaker.stream("x", **GREEDY)) == "abc"
    [completion] = speaker.complete("x", 6, temperature=0, stop_ids=())
    assert completion.text == "abcde"  # special tokens are no text
    assert completion.finish_reason == "length"
    [b] = say(lm, "b")
    assert speaker.generate("x", stop_ids=[b], **GREEDY) == "a"


def test_an_empty_prompt_starts_at_the_end_of_a_text(lm, characters):
    end = lm.tokenizer.end_of_text_id
    [ids] = generate(lm.model, [[end]], 8, temperature=0, stop_ids=[end])
    assert lm.complete("", 8, temperature=0)[0].ids == ids
    assert "".join(lm.stream("", 8, temperature=0)) == lm.tokenizer.decode(ids)
    with pytest.raises(ValueError, match=r"Prompt 0 is empty.*at least one character"):
        characters.generate("")


def test_a_string_gives_a_string_and_a_list_a_list(characters):
    prompts = ["the ", "cat", "at"]
    alone = [characters.generate(prompt, 6, temperature=0) for prompt in prompts]
    assert all(isinstance(text, str) for text in alone)
    assert characters.generate(prompts, 6, temperature=0) == alone
    assert characters.generate(["cat"], 6, temperature=0) == alone[1:2]
    assert characters.generate([], 6) == []


def test_several_sequences_for_each_prompt(characters):
    texts = characters.generate(
        ["the ", "cat"], 8, num_return_sequences=2, temperature=1.0, seed=[3, 8]
    )
    alone = [
        characters.generate(prompt, 8, temperature=1.0, seed=seed)
        for prompt, seed in (("the ", 3), ("the ", 4), ("cat", 8), ("cat", 9))
    ]
    assert texts == alone
    assert len(set(texts)) == 4
    both = characters.generate("the ", 8, num_return_sequences=2, seed=3)
    assert isinstance(both, list)


def test_beams_take_the_defaults_of_the_model(characters):
    plain = {"num_beams": 3, "max_new_tokens": 8}
    model = LanguageModel(
        characters.model,
        characters.tokenizer,
        generation_defaults={"repetition_penalty": 5.0, "temperature": 0.3},
    )
    expected = characters.generate("the", **plain, repetition_penalty=5.0)
    assert model.generate("the", **plain) == expected
    assert characters.generate("the", **plain) != expected
    [completion] = model.complete("the", **plain)
    assert completion.text == expected
    scores = characters.score("the" + expected)
    # float32 sums in another order
    np.testing.assert_allclose(completion.log_probs, scores[-8:], atol=1e-4)


def test_beams_find_what_generate_finds_with_beams(characters):
    ids = characters.tokenizer.encode("the ")
    [row] = generate(characters.model, [ids], 6, num_beams=3)
    assert characters.generate("the ", 6, num_beams=3) == characters.tokenizer.decode(
        row
    )
    one = characters.generate("the ", 6, num_beams=1, temperature=0)
    assert one == characters.generate("the ", 6, temperature=0)
    text = characters.tokenizer.decode(row)
    assert (
        characters.generate("the ", 6, num_beams=3, stop=text[2])
        == (text[: text.find(text[2])])
    )


def log_probs_by_hand(lm, ids):
    """Of each id given those before it: NumPy's log-softmax of the model's logits."""
    padded = np.zeros((1, 32), "int32")
    padded[0, : len(ids) - 1] = ids[:-1]
    logits = ops.convert_to_numpy(lm.model(padded))[0].astype("float64")
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_probs[np.arange(len(ids) - 1), ids[1:]]


def test_a_completion_tells_the_log_probability_of_each_id(lm):
    done = lm.complete("the ", 8, temperature=0.9, seed=1, stop_ids=())[0]
    ids = lm.tokenizer.encode("the ")
    expected = log_probs_by_hand(lm, ids + done.ids)[len(ids) - 1 :]
    # float32 logits of order 10
    np.testing.assert_allclose(done.log_probs, expected, atol=1e-4)
    assert done.finish_reason == "length"


@pytest.mark.every_backend
def test_a_score_equals_log_softmax_by_numpy(lm):
    texts = ["the cat", "🐈", "a"]
    scores = lm.score(texts)
    for text, score in zip(texts, scores, strict=True):
        expected = log_probs_by_hand(lm, lm.tokenizer.encode(text))
        # float32 logits of order 10
        np.testing.assert_allclose(score, expected, atol=1e-4)
        np.testing.assert_allclose(lm.score(text), score, atol=1e-4)


def test_evaluation_reads_documents_as_training_does(lm):
    documents = [TEXT, "the cat ate. " * 3, "猫"]
    end = lm.tokenizer.end_of_text_id
    ids = [i for d in documents for i in [*lm.tokenizer.encode(d), end]]
    starts = range(0, len(ids) - 1, 32)
    losses = -np.concatenate([log_probs_by_hand(lm, ids[s : s + 33]) for s in starts])
    result = lm.evaluate(iter(documents))
    assert result.num_tokens == len(losses) == len(ids) - 1
    # float32 logits of order 10
    assert result.loss == pytest.approx(losses.mean(), abs=1e-5)
    # the first token is given, not predicted
    first = lm.tokenizer.decode_bytes(ids[:1])
    num_bytes = len("".join(documents).encode()) - len(first)
    assert result.bits_per_byte == pytest.approx(
        losses.sum() / math.log(2) / num_bytes, rel=1e-5
    )
    assert lm.evaluate(TEXT) == lm.evaluate([TEXT])


def test_it_says_what_it_is(lm):
    size = f"{lm.model.count_params():,}"
    assert repr(lm) == (
        f"<LanguageModel: GPT of {size} parameters, context 32, BytePairTokenizer of "
        f"{lm.tokenizer.vocab_size} ids, float32>"
    )
    tasks = {"summarize": {}, "chat": {}}
    tuned = LanguageModel(lm.model, lm.tokenizer, tasks=tasks)
    assert repr(tuned).endswith("float32, tuned for summarize, chat>")
