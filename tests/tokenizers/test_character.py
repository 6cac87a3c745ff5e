import pytest

from keras_gpt.tokenizers import CharacterTokenizer


def test_ids_follow_code_points():
    tokenizer = CharacterTokenizer.train(["ba\n", "Zé a"], progress=False)
    assert [tokenizer.token(i) for i in range(tokenizer.vocab_size)] == list("\n Zabé")
    assert tokenizer.encode("baé") == [4, 3, 5]
    assert tokenizer.decode([4, 3, 5]) == "baé"


def test_special_tokens_come_after_the_characters():
    tokenizer = CharacterTokenizer("ab", ["<|endoftext|>"], unknown="symbol")
    assert tokenizer.special_tokens == {"<|endoftext|>": 2, "<|unknown|>": 3}
    assert tokenizer.end_of_text_id == 2
    assert tokenizer.encode("ab<|endoftext|>", allow_special=True) == [0, 1, 2]


def test_vocab_size_keeps_the_most_frequent_characters():
    texts = ["aaa bbb zz y"]
    tokenizer = CharacterTokenizer.train(
        texts, 5, special_tokens=["<|endoftext|>"], progress=False
    )
    assert tokenizer.vocab_size == 5
    assert [tokenizer.token(i) for i in range(4)] == [" ", "a", "b", "z"]


def test_equally_frequent_characters_are_kept_by_code_point():
    tokenizer = CharacterTokenizer.train(["dcba"], 2, progress=False)
    assert tokenizer.encode("ab") == [0, 1]


def test_vocab_size_must_leave_room_for_a_character():
    with pytest.raises(ValueError, match="at least 3: 2 special tokens and one char"):
        CharacterTokenizer.train(
            ["a"], 2, special_tokens=["<|a|>"], unknown="symbol", progress=False
        )


def test_an_unknown_character_is_named_with_its_place():
    tokenizer = CharacterTokenizer("abc")
    with pytest.raises(
        ValueError, match=r"'é' \(U\+00E9\) at index 2.*unknown='symbol'"
    ):
        tokenizer.encode("abé")


def test_an_unknown_character_becomes_the_symbol():
    tokenizer = CharacterTokenizer("abc", unknown="symbol")
    ids = tokenizer.encode("aé")
    assert ids == [0, tokenizer.token_id("<|unknown|>")]
    assert tokenizer.decode(ids) == "a<|unknown|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"


def test_the_choice_for_unknown_characters_is_saved(tmp_path):
    for unknown in ("error", "symbol"):
        tokenizer = CharacterTokenizer("ab", ["<|a|>"], unknown=unknown)
        tokenizer.save(tmp_path)
        copy = CharacterTokenizer.load(tmp_path)
        assert copy.special_tokens == tokenizer.special_tokens
    assert copy.encode("z") == [copy.token_id("<|unknown|>")]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="unknown='skip'"):
        CharacterTokenizer("abc", unknown="skip")
    with pytest.raises(ValueError, match=r"single characters\. Received: 'cd'"):
        CharacterTokenizer(["a", "cd"])
    with pytest.raises(TypeError, match="must be a str"):
        CharacterTokenizer(["a", 1])
    with pytest.raises(ValueError, match="lone surrogate"):
        CharacterTokenizer("a\ud800")
