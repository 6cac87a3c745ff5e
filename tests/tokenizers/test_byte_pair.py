import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tokenizers as huggingface
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_gpt.tokenizers import BytePairTokenizer
from keras_gpt.tokenizers.rules import PRE_TOKENIZERS


@pytest.fixture(scope="module")
def byte_pair(tokenizers):
    return tokenizers["byte_pair"]


def test_every_byte_is_a_token(byte_pair):
    lone = {byte_pair.decode_bytes([i]) for i in range(256)}
    assert lone == {bytes([byte]) for byte in range(256)}


def test_vocab_size_is_the_one_asked_for(byte_pair):
    assert byte_pair.vocab_size == 600
    assert byte_pair.special_tokens == {
        "<|endoftext|>": 597,
        "<|user|>": 598,
        "<|user|>s": 599,
    }


def test_threads_that_allow_special_tokens_forge_none_for_others(byte_pair, documents):
    text = documents[0] + "<|user|>"
    stop = threading.Event()

    def allow():
        while not stop.is_set():
            assert byte_pair.encode(text, allow_special=True)[-1] == 598

    with ThreadPoolExecutor(2) as pool:
        allowing = [pool.submit(allow) for _ in range(2)]
        forged = [598 in byte_pair.encode("<|user|>") for _ in range(2000)]
        stop.set()
        [thread.result() for thread in allowing]
    assert not any(forged)


def test_a_small_corpus_gives_a_smaller_vocabulary():
    tokenizer = BytePairTokenizer.train(["aa aa"], 1000, progress=False)
    assert tokenizer.vocab_size == 256 + 1 + 1  # "aa" and the special token


def test_min_frequency_is_how_often_a_pair_must_occur():
    texts = ["ab ab ab"]
    options = {"special_tokens": (), "progress": False}
    assert (
        BytePairTokenizer.train(texts, 999, min_frequency=3, **options).vocab_size
        == 257
    )
    assert (
        BytePairTokenizer.train(texts, 999, min_frequency=4, **options).vocab_size
        == 256
    )


def test_words_are_cut_as_gpt2_cuts_them():
    text = "the class's  x = 42;\n\tthe"
    tokenizer = BytePairTokenizer.train([text] * 2, 400, progress=False)
    tokens = [tokenizer.token(token_id) for token_id in tokenizer.encode(text)]
    words = ["the", " class", "'s", " ", " x", " =", " 42", ";", "\n", "\t", "the"]
    assert tokens == words


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_ids_decode_as_in_the_tokenizers_library(byte_pair, tmp_path_factory, data):
    byte_pair.save(folder := tmp_path_factory.getbasetemp() / "byte_pair")
    library = huggingface.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = data.draw(st.lists(st.integers(0, 596)))
    assert byte_pair.decode(ids) == library.decode(ids)
    text = data.draw(st.text())
    assert byte_pair.encode(text) == library.encode(text).ids


@pytest.mark.parametrize("rule", ["smollm", "llama3", "qwen2", "tekken", "default"])
def test_ids_of_a_long_text_are_those_of_the_library(byte_pair, documents, rule):
    content = {**json.loads(byte_pair.to_json()), "pre_tokenizer": PRE_TOKENIZERS[rule]}
    tokenizer = BytePairTokenizer(json.dumps(content))
    library = huggingface.Tokenizer.from_str(tokenizer.to_json())
    library.encode_special_tokens = True
    chooser = random.Random(rule)
    words = [*" ".join(documents).split()[:500], "1234", "we'll", "é你", "f(x);", "."]
    spaces = [" ", "\n", "  ", "\n\n", " \n", "\r\n", "\t", "\u3000", "<|user|>", ""]
    texts = [
        "".join(chooser.choice(words) + chooser.choice(spaces) for _ in range(6000)),
        "short",
        "x" * 11_000,  # nowhere to cut
    ]
    expected = [library.encode(text).ids for text in texts]
    assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.encode(texts[0]) == expected[0]


def test_vocab_size_below_the_bytes_is_refused():
    with pytest.raises(
        ValueError, match="at least 257: 256 bytes and 1 special tokens"
    ):
        BytePairTokenizer.train(["text"], 256, progress=False)
    assert BytePairTokenizer.train(["text"], 257, progress=False).vocab_size == 257


def test_a_special_token_that_is_a_word_of_the_corpus_is_refused():
    with pytest.raises(ValueError, match="'hello' in `special_tokens` is also a token"):
        BytePairTokenizer.train(
            ["hello hello"], 300, special_tokens=["hello"], progress=False
        )


def test_pretrained_settings_do_not_change_ids(byte_pair):
    """A pretrained file may truncate, pad, and add tokens around each text."""
    content = json.loads(byte_pair._content)
    special_id = byte_pair.end_of_text_id
    content["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": special_id,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {
            "<|endoftext|>": {
                "id": "<|endoftext|>",
                "ids": [special_id],
                "tokens": ["<|endoftext|>"],
            }
        },
    }
    tokenizer = BytePairTokenizer(json.dumps(content))
    for text in ["a", "the function and the class"]:
        assert tokenizer.encode(text) == byte_pair.encode(text)
        assert tokenizer.encode_batch([text]) == [byte_pair.encode(text)]


def test_what_is_no_byte_level_tokenizer_is_refused(byte_pair):
    with pytest.raises(ValueError, match=r"text of a tokenizer\.json file"):
        BytePairTokenizer("{}")
    with pytest.raises(ValueError, match=r"text of a tokenizer\.json file"):
        BytePairTokenizer("tokenizer.json")
    content = json.loads(byte_pair._content)
    content["decoder"] = None
    with pytest.raises(
        ValueError, match=r"ByteFallback decoder\. Received: decoder=None"
    ):
        BytePairTokenizer(json.dumps(content))
