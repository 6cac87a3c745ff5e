"""What every tokenizer makes of its training arguments."""

import pytest

from keras_gpt.tokenizers import (
    BytePairTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
)

CLASSES = [BytePairTokenizer, CharacterTokenizer, SentencePieceTokenizer]


@pytest.mark.parametrize("cls", CLASSES)
def test_training_reads_a_generator_once(cls, documents):
    stream = (document for document in documents)
    tokenizer = cls.train(stream, 500, progress=False)
    whole = cls.train(documents, 500, progress=False)
    assert tokenizer.fingerprint == whole.fingerprint
    assert list(stream) == []


@pytest.mark.parametrize("cls", CLASSES)
def test_one_str_is_one_text_of_the_corpus(cls, documents):
    one = cls.train(documents[0], 400, progress=False)
    assert one.fingerprint == cls.train(documents[:1], 400, progress=False).fingerprint


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("corpus", [[], [""], iter(["", ""])])
def test_an_empty_corpus_is_refused(cls, corpus):
    with pytest.raises(ValueError, match="The corpus is empty"):
        cls.train(corpus, 400, progress=False)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("progress", [False, True])
def test_an_error_of_the_corpus_reaches_the_caller(cls, progress):
    def corpus():
        yield "some text"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        cls.train(corpus(), 400, progress=progress)
    with pytest.raises(TypeError, match=r"must be a str\. Received: '5' of type int"):
        cls.train(["some text", 5], 400, progress=progress)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("vocab_size", [0, -1, 2.5, "many", True, 99_999_999_999])
def test_a_vocab_size_that_is_no_size_is_refused(cls, vocab_size):
    with pytest.raises(ValueError, match=f"vocab_size={vocab_size!r}"):
        cls.train(["some text"], vocab_size, progress=False)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("names", [["<|a|>", "<|a|>"], ["a"], [""], [3], [None]])
def test_special_tokens_that_are_no_names_are_refused(cls, names):
    with pytest.raises(ValueError, match="special_tokens"):
        cls.train(["some text"], 400, special_tokens=names, progress=False)


@pytest.mark.parametrize("cls", CLASSES)
def test_special_tokens_may_hold_any_character(cls):
    names = ["<|a, b|>", '<|"|>', "<|\n|>", "<|é|>", "<|.*|>", "<|<|"]
    tokenizer = cls.train(["some text"], 400, special_tokens=names, progress=False)
    assert list(tokenizer.special_tokens) == names
    ids = tokenizer.encode("".join(names), allow_special=True)
    assert ids == list(tokenizer.special_tokens.values())
    assert tokenizer.decode(ids) == "".join(names)


@pytest.mark.parametrize("cls", CLASSES)
def test_progress_counts_texts_on_stderr_only(cls, documents, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    cls.train(documents, 400)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "Learning from 30 texts" in captured.err


@pytest.mark.parametrize("cls", CLASSES)
def test_training_without_progress_is_silent(cls, documents, capfd):
    cls.train(documents, 400, progress=False)
    assert capfd.readouterr() == ("", "")
