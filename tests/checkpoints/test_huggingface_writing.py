"""Folders written for Transformers: it reads the same model, and so do we."""

import json

import ml_dtypes
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from keras import ops
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers

from keras_gpt import GPT, GPTConfig, LanguageModel
from keras_gpt.checkpoints import write_huggingface
from keras_gpt.checkpoints.huggingface import writing
from keras_gpt.tokenizers import (
    BytePairTokenizer,
    CharacterTokenizer,
    ChatTemplate,
    SentencePieceTokenizer,
)

pytestmark = [
    pytest.mark.usefixtures("quiet_transformers"),
    # tested by its own test
    pytest.mark.filterwarnings("ignore:This model is written as a Qwen2:UserWarning"),
]

# Sums in another order: 4e-6 at most was seen, of logits up to 3
TOLERANCE = 1e-5

SIZES = {
    "vocab_size": 620,  # more than the tokenizer has
    "context_length": 256,
    "embedding_dimension": 32,
    "num_layers": 2,
    "num_heads": 4,
}
LLAMA = {
    "position_embedding": "rotary",
    "normalization": "rms_norm",
    "activation": "swiglu",
    "use_bias": False,
}
CASES = {
    "gpt2": ("gpt2", {}),
    "gpt2, untied, other widths, gelu_tanh": (
        "gpt2",
        {
            "activation": "gelu_tanh",
            "tie_embeddings": False,
            "feed_forward_dimension": 80,
            "norm_epsilon": 1e-3,
            "dropout_rate": 0.1,
        },
    ),
    "gpt2 without biases": ("gpt2", {"use_bias": False}),
    "gpt2 with fewer biases": ("gpt2", {"query_key_value_bias": False}),
    "gpt2 of packed documents": ("gpt2", {"document_separator_id": 610}),
    "llama": ("llama", LLAMA),
    "llama, other heads, Llama 3.1's scaling": (
        "llama",
        {
            **LLAMA,
            "num_kv_heads": 2,
            "attention_dimension": 64,
            "rotary_base": 5e5,
            "rotary_scaling": {
                "type": "llama3",
                "factor": 8.0,
                "low_frequency_factor": 1.0,
                "high_frequency_factor": 4.0,
                "original_context_length": 64,
            },
        },
    ),
    "llama, untied, biases, linear scaling": (
        "llama",
        {
            **LLAMA,
            "use_bias": True,
            "tie_embeddings": False,
            "rotary_scaling": {"type": "linear", "factor": 2.0},
        },
    ),
    "mistral": ("mistral", {**LLAMA, "sliding_window": 50, "num_kv_heads": 1}),
    "qwen2": ("qwen2", {**LLAMA, "query_key_value_bias": True}),
    "qwen2, window": (
        "qwen2",
        {**LLAMA, "query_key_value_bias": True, "sliding_window": 50},
    ),
    "qwen3": ("qwen3", {**LLAMA, "qk_norm": True, "attention_dimension": 64}),
    "qwen3, window": ("qwen3", {**LLAMA, "qk_norm": True, "sliding_window": 50}),
}
TEXTS = [
    "",
    "  two spaces, then\n\n\nthree lines\t and a tab ",
    "It's 'real', they'll 12345 3.14",
    "Ελληνικά, русский, हिन्दी, 中文和日本語, café cafe\u0301 😀",
    "▁ a▁b ▁▁ <0x41> <0xE2> <unk>",
    "\x00\x1f\x7f\ufeff\ufffd\r\n" + " " * 40,
]


# https://github.com/huggingface/transformers, models/qwen2/tokenization_qwen2.py
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture
def make(byte_pair, randomize):
    """A function that makes a language model with random weights."""

    def build(fields, tokenizer=byte_pair, **options):
        model = GPT(GPTConfig(**{**SIZES, **fields}))
        randomize(model.weights)
        return LanguageModel(model, tokenizer, **options)

    return build


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def to_numpy(weight):
    return ops.convert_to_numpy(ops.stop_gradient(weight.value))


@pytest.mark.parametrize("case", CASES)
def test_transformers_gives_the_same_logits(case, make, tmp_path, token_ids, logits_of):
    family, fields = CASES[case]
    lm = make(fields)
    write_huggingface(lm, tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert reference.config.model_type == family
    with torch.no_grad():
        theirs = reference(torch.tensor(token_ids)).logits.numpy()
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(
        logits_of(lm.model, token_ids), theirs, atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("case", CASES)
def test_reading_it_back_gives_the_same_model(case, make, tmp_path):
    _, fields = CASES[case]
    lm = make(fields)
    write_huggingface(lm, tmp_path)
    back = LanguageModel.from_pretrained(tmp_path)
    weights = {weight.path: to_numpy(weight) for weight in back.model.weights}
    for weight in lm.model.weights:
        assert np.array_equal(weights.pop(weight.path), to_numpy(weight))
    # a GPT-2 of Transformers has biases everywhere
    assert not any(values.any() for values in weights.values())
    assert bool(weights) == case.endswith(" biases")
    if not weights:
        config, expected = back.model.config.to_dict(), lm.model.config.to_dict()
        for name, value in expected.items():
            # what is `None` there may be written out; the others have no place
            if value is not None and name not in ("document_separator_id",):
                assert config[name] == value, name


def test_everything_else_is_read_back_too(make, tmp_path, byte_pair):
    lm = make(
        {},
        stop_ids=(5, 7),
        chat_template=ChatTemplate(
            "{{ messages[0].content }}{{ eos_token }}\n é",
            {"eos_token": "<|endoftext|>"},
        ),
        generation_defaults={"temperature": 0.6, "top_p": 0.9, "top_k": None},
        source={"license": "apache-2.0", "name": "secret/name"},
        tasks={"summarize": {"instruction": "Be brief."}},
    )
    write_huggingface(lm, tmp_path)
    back = LanguageModel.from_pretrained(tmp_path)
    assert (back.tasks, back.task) == (lm.tasks, "summarize")
    assert back.stop_ids == lm.stop_ids
    assert back.generation_defaults == lm.generation_defaults
    assert back.source["license"] == "apache-2.0"
    assert back.chat_template.template == lm.chat_template.template
    messages = [{"role": "user", "content": "Hi"}]
    assert back.chat_template.render(messages) == lm.chat_template.render(messages)
    assert back.tokenizer.fingerprint == byte_pair.fingerprint
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.apply_chat_template(messages, tokenize=False) == "Hi<|endoftext|>\n é"
    assert theirs.eos_token == theirs.pad_token == "<|endoftext|>"
    assert theirs.model_max_length == 256
    defaults = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (defaults.eos_token_id, defaults.do_sample) == ([5, 7], True)
    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (0.6, 0.9, 0)


def test_a_greedy_default_is_greedy_in_transformers(make, tmp_path):
    write_huggingface(make({}, generation_defaults={"temperature": 0}), tmp_path)
    defaults = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert defaults.do_sample is False


def test_transformers_generates_the_same_text(make, tmp_path):
    lm = make({}, stop_ids=())
    lm.save_huggingface(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer("The statement", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
    text = tokenizer.decode(ids[inputs["input_ids"].shape[1] :])
    assert lm.generate("The statement", max_new_tokens=20, temperature=0) == text


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_numbers_are_rounded_once_to_the_dtype_asked_for(dtype, make, tmp_path):
    lm = make({**LLAMA, "tie_embeddings": False})
    write_huggingface(lm, tmp_path, dtype)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype.name for tensor in tensors.values()} == {dtype}
    assert read_json(tmp_path / "config.json")["dtype"] == dtype
    weight = to_numpy(lm.model.embedding.tokens.embeddings)
    dtype = getattr(ml_dtypes, dtype, dtype)
    assert np.array_equal(tensors["model.embed_tokens.weight"], weight.astype(dtype))


def test_the_default_is_the_dtype_of_the_weights(make, tmp_path, byte_pair):
    model = GPT(GPTConfig(**SIZES), dtype="bfloat16")
    write_huggingface(LanguageModel(model, byte_pair), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype.name for tensor in tensors.values()} == {"bfloat16"}
    weight = to_numpy(model.embedding.tokens.embeddings)
    assert np.array_equal(tensors["transformer.wte.weight"], weight)


def test_numbers_that_float16_does_not_have_are_refused(make, tmp_path):
    lm = make({})
    scale = lm.model.final_norm.weights[0]
    scale.assign(np.full(scale.shape, 1e5))
    with pytest.raises(ValueError, match=r"ln_f.*float16.*dtype='bfloat16'"):
        write_huggingface(lm, tmp_path / "model", "float16")
    assert not list((tmp_path / "model").iterdir())
    write_huggingface(lm, tmp_path / "model", "bfloat16")


def test_shards_are_of_the_size_and_give_the_same(make, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_SHARD_SIZE", 50_000)
    lm = make(LLAMA)
    write_huggingface(lm, tmp_path)
    paths = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in paths] == [
        f"model-0000{n}-of-0000{len(paths)}.safetensors"
        for n in range(1, len(paths) + 1)
    ]
    # the embeddings alone are more
    assert all(path.stat().st_size < 52_000 for path in paths[1:])
    index = read_json(tmp_path / "model.safetensors.index.json")
    sizes = [sum(t.nbytes for t in load_file(path).values()) for path in paths]
    assert index["metadata"]["total_size"] == sum(sizes)
    back = LanguageModel.from_pretrained(tmp_path).model
    for one, other in zip(lm.model.weights, back.weights, strict=True):
        assert np.array_equal(to_numpy(one), to_numpy(other))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    weight = reference.model.norm.weight.detach().numpy()
    assert np.array_equal(weight, to_numpy(lm.model.final_norm.scale))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"position_embedding": "sinusoidal"}, "position_embedding='sinusoidal'"),
        ({"position_embedding": "rotary"}, "position_embedding='rotary'"),
        ({"position_embedding": "none"}, "position_embedding='none'"),
        ({"activation": "relu_squared"}, "activation='relu_squared'"),
        ({"activation": "swiglu"}, "activation='swiglu'"),
        ({"qk_norm": True}, "qk_norm=True"),
        ({"sliding_window": 5}, "sliding_window=5"),
        ({"num_kv_heads": 2}, "num_kv_heads=2"),
        ({"attention_dimension": 64}, "attention_dimension=64"),
        ({**LLAMA, "position_embedding": "learned"}, "position_embedding='learned'"),
        ({**LLAMA, "activation": "gelu"}, "activation='gelu'"),
        ({**LLAMA, "qk_norm": True, "use_bias": True}, "use_bias=True"),
        (
            {**LLAMA, "qk_norm": True, "query_key_value_bias": True},
            "query_key_value_bias=True",
        ),
        (
            {**LLAMA, "use_bias": True, "query_key_value_bias": False},
            "query_key_value_bias=False",
        ),
        ({**LLAMA, "use_bias": True, "sliding_window": 5}, "use_bias=True"),
    ],
)
def test_a_setting_that_no_family_has_is_named(fields, match, make, tmp_path):
    lm = make(fields)
    with pytest.raises(ValueError, match=match):
        write_huggingface(lm, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_unknown_dtype_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match="dtype='int8'"):
        write_huggingface(make({}), tmp_path, "int8")


def test_a_folder_that_holds_something_is_left_alone(make, tmp_path):
    lm = make({})
    lm.save(tmp_path)
    before = {path: path.stat() for path in tmp_path.rglob("*")}
    with pytest.raises(FileExistsError, match="isn't an empty folder"):
        write_huggingface(lm, tmp_path)
    assert {path: path.stat() for path in tmp_path.rglob("*")} == before


def test_what_fails_leaves_nothing(make, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("the disk is gone")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        write_huggingface(make({}), tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())


def test_a_card_holds_no_licence_that_would_break_it(make, tmp_path):
    lm = make({}, source={"license": "mit\n---\n# Injected"})
    write_huggingface(lm, tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "Injected" not in card
    assert "keras_gpt" in card


# --- Tokenizers ---


def check_tokenizer(lm, folder, texts):
    write_huggingface(lm, folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    back = LanguageModel.from_pretrained(folder).tokenizer
    assert back.special_tokens == lm.tokenizer.special_tokens
    for text in texts:
        ids = lm.tokenizer.encode(text)
        options = {"add_special_tokens": False, "split_special_tokens": True}
        assert theirs(text, **options)["input_ids"] == ids, text[:80]
        assert theirs.decode(ids) == text
        assert back.encode(text) == ids
        assert back.decode(ids) == text
        text = f"<|endoftext|>{text}<|endoftext|>"
        ids = lm.tokenizer.encode(text, allow_special=True)
        assert theirs(text)["input_ids"] == ids
        assert back.encode(text, allow_special=True) == ids
    assert theirs.eos_token_id == lm.tokenizer.end_of_text_id


@pytest.mark.parametrize("case", ["gpt2", "llama", "mistral", "qwen3"])
def test_byte_pair_ids_are_the_same(case, make, tmp_path, documents):
    check_tokenizer(make(CASES[case][1]), tmp_path, documents[::3] + TEXTS)


def test_a_qwen2_with_words_that_are_not_qwens_gets_a_warning(
    make, tmp_path, documents
):
    lm = make({**LLAMA, "query_key_value_bias": True})
    with pytest.warns(UserWarning, match="PreTrainedTokenizerFast"):
        lm.save_huggingface(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in [*documents[::5], *TEXTS]:
        assert theirs(text)["input_ids"] == lm.tokenizer.encode(text)


def test_qwens_own_words_get_none(make, tmp_path, documents):
    tokenizer = make_qwen(documents)
    lm = make({**LLAMA, "query_key_value_bias": True}, tokenizer)
    # AutoTokenizer composes characters, as this file says too
    check_tokenizer(lm, tmp_path, [*documents[::5], *TEXTS[:3]])


def make_qwen(documents):
    """A tokenizer as Qwen2's `tokenizer.json` describes it."""
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN_WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result = tokenizers.Tokenizer(tokenizers.models.BPE())
    result.normalizer = tokenizers.normalizers.NFC()
    result.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    result.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    result.train_from_iterator(documents, trainer)
    name = tokenizers.AddedToken("<|endoftext|>", special=True, normalized=False)
    result.add_special_tokens([name])
    return BytePairTokenizer(result.to_str())


def test_sentence_piece_ids_are_the_same(make, tmp_path, documents):
    tokenizer = SentencePieceTokenizer.train(documents[:30], 600, progress=False)
    lm = make(LLAMA, tokenizer)
    check_tokenizer(lm, tmp_path, documents + TEXTS)
    assert (tmp_path / "tokenizer.model").is_file()


def test_a_unigram_model_is_kept_as_it_is(make, tmp_path, documents):
    tokenizer = SentencePieceTokenizer.train(
        documents[:30], 600, model_type="unigram", progress=False
    )
    write_huggingface(make(LLAMA, tokenizer), tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    back = LanguageModel.from_pretrained(tmp_path).tokenizer
    assert back.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("unknown", ["error", "symbol"])
def test_character_ids_are_the_same(unknown, make, tmp_path, documents):
    tokenizer = CharacterTokenizer.train(
        documents, unknown=unknown, special_tokens=["<|endoftext|>"], progress=False
    )
    lm = make({}, tokenizer)
    check_tokenizer(lm, tmp_path, ["", *documents])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    if unknown == "symbol":
        assert theirs("a\U0001f600b")["input_ids"] == tokenizer.encode("a\U0001f600b")
    else:
        with pytest.raises(Exception, match="UNK"):  # the library's own kind
            theirs("\U0001f600")


def test_a_tokenizer_without_special_tokens_gets_none(make, tmp_path):
    lm = make({}, CharacterTokenizer("abc"))
    write_huggingface(lm, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == 3
    assert theirs("cab")["input_ids"] == [2, 0, 1]
