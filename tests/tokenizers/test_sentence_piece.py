import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_gpt.tokenizers import SentencePieceTokenizer


def tokens(tokenizer, text):
    return [tokenizer.token(token_id) for token_id in tokenizer.encode(text)]


def library_of(tokenizer):
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer._content)


@pytest.mark.parametrize("kind", ["sentence_piece", "unigram"])
@settings(max_examples=100, deadline=None)
@given(text=st.text().filter(lambda text: "\u2581" not in text))
def test_ids_are_those_of_the_library(tokenizers, kind, text):
    library = library_of(tokenizers[kind])
    ids = tokenizers[kind].encode(text)
    assert ids == library.encode(text)
    assert library.decode(ids) == text


@pytest.mark.parametrize("kind", ["sentence_piece", "unigram"])
@given(text=st.text("\u2581 a", max_size=8))
@settings(max_examples=100, deadline=None)
def test_the_space_mark_is_kept_apart_from_the_space(tokenizers, kind, text):
    ids = tokenizers[kind].encode(text)
    assert library_of(tokenizers[kind]).decode(ids) == text
    assert tokenizers[kind].encode_batch([text, "a"])[0] == ids


def test_vocab_size_is_the_one_asked_for(tokenizers):
    assert tokenizers["sentence_piece"].vocab_size == 600
    assert tokenizers["unigram"].vocab_size == 600


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_small_corpus_gives_a_smaller_vocabulary(model_type):
    tokenizer = SentencePieceTokenizer.train(
        ["hello world"], 10_000, model_type=model_type, progress=False
    )
    assert 260 < tokenizer.vocab_size < 300
    assert tokenizer.decode(tokenizer.encode("hello you")) == "hello you"


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_spaces_survive_training_on_text_without_any(model_type):
    tokenizer = SentencePieceTokenizer.train(
        ["abcabc" * 2000], 300, model_type=model_type, progress=False
    )
    assert tokenizer.decode(tokenizer.encode(" a  b ")) == " a  b "


def test_a_long_document_is_learned_from_to_its_end():
    # Megabytes on one line: the library's own limit would drop it
    text = "alpha beta " * 200_000 + "gamma " * 10_000
    tokenizer = SentencePieceTokenizer.train([text], 400, progress=False)
    assert tokens(tokenizer, "alpha beta gamma") == ["alpha", " beta", " gamma"]


@pytest.mark.parametrize("separator", ["\0", "\n", "\r", "\t", "\u2585", "\u2047"])
def test_text_beside_control_characters_is_learned_from(separator):
    text = separator.join(["alpha"] * 20)
    tokenizer = SentencePieceTokenizer.train([text], 400, progress=False)
    assert "alpha" in tokens(tokenizer, text)


def test_cutting_a_document_into_sentences_cuts_no_word():
    words = [" alpha", " beta", " gamma"] * 3000
    long = SentencePieceTokenizer.train(["".join(words)], 400, progress=False)
    assert (
        long.fingerprint
        == SentencePieceTokenizer.train(words, 400, progress=False).fingerprint
    )


def test_digits_are_single_tokens(tokenizers):
    assert tokens(tokenizers["sentence_piece"], "3.11")[-2:] == ["1", "1"]


def test_vocab_size_below_the_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 259: <unk>, 1 special tokens, 256"):
        SentencePieceTokenizer.train(["text"], 258, progress=False)


def test_vocab_size_below_the_characters_names_the_minimum():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 500)))
    with pytest.raises(ValueError, match="`vocab_size` must be at least 759 for the"):
        SentencePieceTokenizer.train([text], 400, progress=False)
    tokenizer = SentencePieceTokenizer.train([text], 759, progress=False)
    assert tokenizer.vocab_size <= 759


def test_an_unknown_model_type_is_named():
    with pytest.raises(ValueError, match="model_type='word'"):
        SentencePieceTokenizer.train(["text"], 400, model_type="word", progress=False)


def model_trained_with(documents, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents),
        model_writer=model,
        vocab_size=500,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def test_a_model_that_loses_text_is_refused(documents):
    with pytest.raises(ValueError, match="a piece for each of the 256 bytes"):
        SentencePieceTokenizer(model_trained_with(documents))
    with pytest.raises(ValueError, match="must keep text as it is"):
        SentencePieceTokenizer(model_trained_with(documents, byte_fallback=True))


@pytest.mark.parametrize("model", [b"", b"not a model", None])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ValueError, match=r"bytes of a SentencePiece model|256 bytes"):
        SentencePieceTokenizer(model)
