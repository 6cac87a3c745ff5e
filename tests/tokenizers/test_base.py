"""What holds for every tokenizer."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_gpt.tokenizers
from keras_gpt.tokenizers import (
    BytePairTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
)

CLASSES = [BytePairTokenizer, CharacterTokenizer, SentencePieceTokenizer]
LOSSLESS = ["sentence_piece", "unigram", "byte_pair"]
SENTENCE = "A <|user|> types <|endoftext|> and <|user|>s."

# What libraries lose: NUL, line ends, SentencePiece's marks, byte-order marks, other
# spaces, what normalization changes, spelled bytes and special tokens
TRICKY = [
    "\0",
    "\r",
    "\n",
    "\r\n",
    "\t",
    " ",
    "\u2581",
    "\u2585",
    "\u2047",
    "\ufeff",
    "\ufffd",
    "\xa0",
    "\u2028",
    "\u3000",
    "\u200d",
    "e\u0301",
    "\uff21",
    "\ufb01",
    "\U0001f600",
    "<0x0A>",
    "<unk>",
    "<s>",
    "<|endoftext|>",
    "the",
]
texts = st.text() | st.lists(st.sampled_from(TRICKY) | st.text(max_size=3)).map("".join)


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_every_text_decodes_to_itself(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8")
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.encode_batch([text, "a", text]) == [
        ids,
        tokenizer.encode("a"),
        ids,
    ]


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_ids_decode_to_the_bytes_of_each(tokenizers, kind, data):
    tokenizer = tokenizers[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    whole = tokenizer.decode_bytes(ids)
    assert whole == b"".join(tokenizer.decode_bytes([token_id]) for token_id in ids)
    assert tokenizer.decode(ids) == whole.decode("utf-8", "replace")


def test_documents_decode_to_themselves(tokenizer, documents):
    batch = tokenizer.encode_batch(documents)
    assert batch == [tokenizer.encode(document) for document in documents]
    assert [tokenizer.decode(ids) for ids in batch] == documents


def test_ids_are_python_integers_below_vocab_size(tokenizer, documents):
    ids = tokenizer.encode(documents[0])
    assert {type(token_id) for token_id in ids} == {int}
    assert 0 <= min(ids) <= max(ids) < tokenizer.vocab_size


def test_text_cannot_forge_special_tokens(tokenizer):
    special_ids = set(tokenizer.special_tokens.values())
    assert not special_ids & set(tokenizer.encode(SENTENCE))
    assert not special_ids & set(tokenizer.encode_batch([SENTENCE])[0])
    assert tokenizer.decode(tokenizer.encode(SENTENCE)) == SENTENCE


def test_special_tokens_are_read_when_allowed(tokenizer):
    ids = tokenizer.encode(SENTENCE, allow_special=True)
    special = tokenizer.special_tokens
    found = [token_id for token_id in ids if token_id in special.values()]
    expected = ["<|user|>", "<|endoftext|>", "<|user|>s"]
    assert found == [special[name] for name in expected]
    assert tokenizer.decode(ids) == SENTENCE
    assert tokenizer.decode(ids, skip_special_tokens=True) == "A  types  and ."
    assert tokenizer.encode_batch([SENTENCE], allow_special=True) == [ids]


def test_special_tokens_have_ids_and_names(tokenizer):
    assert tokenizer.end_of_text_id == tokenizer.token_id("<|endoftext|>")
    assert tokenizer.token(tokenizer.end_of_text_id) == "<|endoftext|>"
    assert tokenizer.special_tokens["<|user|>"] == tokenizer.token_id("<|user|>")
    with pytest.raises(ValueError, match=r"name='<\|system\|>'.*'<\|user\|>'"):
        tokenizer.token_id("<|system|>")


def test_a_tokenizer_without_special_tokens_has_no_end_of_text_id(documents):
    for cls in CLASSES:
        tokenizer = cls.train(documents, 500, special_tokens=(), progress=False)
        assert tokenizer.end_of_text_id is None
        assert tokenizer.special_tokens == {}
        ids = tokenizer.encode("the", allow_special=True)
        assert ids == tokenizer.encode("the")


@pytest.mark.parametrize(
    "convert", [tuple, np.array, lambda ids: np.array(ids, "uint16")]
)
def test_arrays_of_ids_decode_like_lists(tokenizer, convert):
    ids = tokenizer.encode("the function")
    assert tokenizer.decode(convert(ids)) == "the function"
    assert tokenizer.decode(convert([])) == ""


@pytest.mark.parametrize("wrong", [-1, "vocab_size"])
def test_an_id_out_of_range_is_named(tokenizer, wrong):
    wrong = tokenizer.vocab_size if wrong == "vocab_size" else wrong
    message = f"id={wrong}, vocab_size={tokenizer.vocab_size}"
    with pytest.raises(ValueError, match=message):
        tokenizer.decode([0, wrong])
    with pytest.raises(ValueError, match=message):
        tokenizer.token(wrong)


@pytest.mark.parametrize("ids", [[[1, 2]], [[1], [2, 3]], [1.5], 3, "abc", [True]])
def test_what_is_not_one_sequence_of_integers_is_refused(tokenizer, ids):
    with pytest.raises(ValueError, match="one sequence of integers"):
        tokenizer.decode(ids)


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["a", "list"]])
def test_what_is_not_text_is_refused(tokenizer, text):
    with pytest.raises(TypeError, match="must be a str"):
        tokenizer.encode(text)
    with pytest.raises(TypeError, match="must be a str"):
        tokenizer.encode_batch(["text", text])


def test_one_text_is_no_batch(tokenizer):
    with pytest.raises(TypeError, match=r"Use encode\(text\)"):
        tokenizer.encode_batch("text")


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at index 2"):
        tokenizer.encode("ab\ud800")


def test_a_pickled_copy_encodes_the_same(tokenizer, documents):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    for text in [SENTENCE, documents[0]]:
        assert copy.encode(text) == tokenizer.encode(text)


def test_a_saved_copy_encodes_the_same(tokenizer, documents, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    for load in (type(tokenizer).load, keras_gpt.tokenizers.load):
        copy = load(tmp_path / "tokenizer")
        assert type(copy) is type(tokenizer)
        assert copy.fingerprint == tokenizer.fingerprint
        assert copy.special_tokens == tokenizer.special_tokens
        assert copy.vocab_size == tokenizer.vocab_size
        for text in [SENTENCE, documents[0]]:
            assert copy.encode(text) == tokenizer.encode(text)
    names = {path.name for path in (tmp_path / "tokenizer").iterdir()}
    assert names == {tokenizer.file_name, "tokenizer_config.json"}


def test_saving_replaces_an_older_tokenizer(documents, tmp_path):
    for vocab_size in (400, 500):
        tokenizer = BytePairTokenizer.train(documents, vocab_size, progress=False)
        tokenizer.save(tmp_path)
    assert BytePairTokenizer.load(tmp_path).vocab_size == 500


def test_fingerprints_tell_tokenizers_apart(tokenizers):
    fingerprints = {tokenizer.fingerprint for tokenizer in tokenizers.values()}
    assert len(fingerprints) == len(tokenizers)
    assert all(len(bytes.fromhex(digits)) == 8 for digits in fingerprints)


@pytest.mark.parametrize("cls", CLASSES)
def test_training_twice_gives_the_same_tokenizer(cls, documents):
    first, second = (cls.train(documents, 500, progress=False) for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_a_truncated_file_is_named(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / tokenizer.file_name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"{path.name} .* truncated"):
        keras_gpt.tokenizers.load(tmp_path)


def test_an_edited_file_is_named(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / tokenizer.file_name
    path.write_bytes(path.read_bytes().replace(b"e", b"f", 1))
    with pytest.raises(ValueError, match=rf"{path.name} .* edited"):
        keras_gpt.tokenizers.load(tmp_path)


def test_what_is_missing_is_named(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        keras_gpt.tokenizers.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer_config\.json"):
        type(tokenizer).load(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / tokenizer.file_name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{tokenizer.file_name} is missing"):
        type(tokenizer).load(tmp_path)


def test_another_class_is_named(tmp_path):
    CharacterTokenizer("abc").save(tmp_path)
    with pytest.raises(ValueError, match="holds a CharacterTokenizer, not a BytePair"):
        BytePairTokenizer.load(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"class": "WordTokenizer"}), encoding="utf-8")
    with pytest.raises(ValueError, match="class='WordTokenizer'"):
        keras_gpt.tokenizers.load(tmp_path)
    path.write_text('{"tokenizer_class": "GPT2Tokenizer"}', encoding="utf-8")
    with pytest.raises(ValueError, match="was not written by keras_gpt"):
        keras_gpt.tokenizers.load(tmp_path)


def test_threads_encode_the_same_as_one(tokenizer, documents):
    with ThreadPoolExecutor(8) as pool:
        batch = list(pool.map(tokenizer.encode, documents))
    assert batch == [tokenizer.encode(document) for document in documents]
