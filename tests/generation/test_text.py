from hypothesis import given
from hypothesis import strategies as st

from keras_gpt.generation import TextAssembler
from keras_gpt.tokenizers import BytePairTokenizer, CharacterTokenizer

END = "<|endoftext|>"
# 257 ids: every byte is a token of its own, and so every character is split
BYTES = BytePairTokenizer.train(["a"], 257, special_tokens=[END])
TEXTS = st.text("abc \néß猫🐈", max_size=12)


def ids_of(text):
    """One id for each byte."""
    ids = BYTES.encode(text)
    assert len(ids) == len(text.encode())
    return ids


def assemble(ids, stop=(), sizes=()):
    """The pieces that come of ids added a few at a time, and the assembler."""
    assembler = TextAssembler(BYTES, stop)
    pieces, sizes = [], list(sizes)
    while ids:
        size = sizes.pop() if sizes else 1
        pieces.append(assembler.add(ids[:size]))
        ids = ids[size:]
    pieces.append(assembler.finish())
    return pieces, assembler


@given(TEXTS, st.lists(st.integers(1, 5)))
def test_pieces_join_to_the_text_and_split_no_character(text, sizes):
    pieces, assembler = assemble(ids_of(text), sizes=sizes)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert assembler.text == text
    assert not assembler.stopped


def test_a_character_comes_with_its_last_byte():
    pieces, _ = assemble(ids_of("é🐈!"))
    assert pieces == ["", "é", "", "", "", "🐈", "!", ""]


def test_bytes_that_are_no_character_become_the_replacement_character():
    whole = ids_of("🐈")
    assert assemble(whole[:2])[0] == ["", "", "\ufffd"]
    pieces, _ = assemble([*whole[:2], *ids_of("a")])
    assert "".join(pieces) == "\ufffda"


@given(
    TEXTS,
    st.lists(st.text("abc é🐈", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(1, 5)),
)
def test_the_text_ends_before_the_first_stop_string(text, stop, sizes):
    ends = [
        (text.find(string) + len(string), text.find(string))
        for string in stop
        if string in text
    ]
    expected = text[: min(ends)[1]] if ends else text
    pieces, assembler = assemble(ids_of(text), stop, sizes)
    assert "".join(pieces) == expected
    assert assembler.text == expected
    assert assembler.stopped == bool(ends)


@given(TEXTS, TEXTS.filter(bool))
def test_nothing_of_a_stop_string_comes_before_it_is_certain(text, stop):
    assembler = TextAssembler(BYTES, [stop])
    given_out = ""
    for token_id in ids_of(text + stop):
        given_out += assembler.add([token_id])
        assert len(given_out) <= (text + stop).find(stop)
    assert assembler.stopped
    assert assembler.finish() == ""


def test_of_stop_strings_the_one_that_ends_first_counts_however_text_comes():
    # "bc" ends before "abcd" does; of two that end together, the longer begins first
    for stop, expected in ((["bc", "abcd"], "a"), (["c", "bc"], "a")):
        for sizes in ((), (4,), (2, 2)):
            pieces, _ = assemble(ids_of("abcd"), stop, sizes)
            assert "".join(pieces) == expected


def test_text_is_held_back_only_while_a_stop_string_may_come():
    pieces, assembler = assemble(ids_of("a--b---c"), ["---"])
    assert pieces[:4] == ["a", "", "", "--b"]
    assert "".join(pieces) == "a--b"
    assert assembler.stopped


def test_text_that_only_begins_like_a_stop_string_comes_at_the_end():
    pieces, assembler = assemble(ids_of("a--"), ["---"])
    assert pieces == ["a", "", "", "--"]
    assert not assembler.stopped


def test_special_tokens_are_no_text():
    ids = [*ids_of("a"), BYTES.end_of_text_id, *ids_of("b")]
    assert "".join(assemble(ids, [END])[0]) == "ab"


def test_tokens_of_many_characters_may_hold_a_stop_string():
    tokenizer = BytePairTokenizer.train(["hello"] * 9, 270)
    [hello] = tokenizer.encode("hello")
    assembler = TextAssembler(tokenizer, ["ll"])
    assert assembler.add([hello]) == "he"
    assert assembler.stopped


def test_every_tokenizer_serves():
    tokenizer = CharacterTokenizer("aé")
    assembler = TextAssembler(tokenizer)
    assert assembler.add(tokenizer.encode("éa")) == "éa"
