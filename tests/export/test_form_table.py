import re

import numpy as np
import pytest

from keras_gpt.export.form_table import make_table


@pytest.mark.parametrize("tokenizer", ["characters", "byte_pairs", "sentence_piece"])
def test_every_way_through_a_table_is_a_text_of_the_form(
    make_language_model, tokenizer
):
    lm, random = make_language_model("gpt2", tokenizer), np.random.default_rng(0)
    regex = "(c|cat|mat)s?( on [12]{2}|; .){0,4}?"
    table = make_table(lm, lm.stop_ids, regex)
    assert table.following.size < 10_000  # of 320 tokens each
    texts = set()
    for _ in range(50):
        state, ids = 0, []
        while not table.is_over[state]:
            behind = table.following[state][table.kinds]
            token = random.choice(np.flatnonzero(behind >= 0))
            if token in lm.stop_ids:
                break
            ids.append(token)
            state = behind[token]
        texts.add(lm.tokenizer.decode(ids))
    assert all(re.fullmatch(regex, text) for text in texts)
    assert len(texts) > 20


def test_an_answer_may_go_on_where_it_is_whole(make_language_model):
    lm = make_language_model("gpt2", "characters")
    table = make_table(lm, lm.stop_ids, choices=["a", "as", "at.", "so"])
    [end] = lm.stop_ids
    behind = table.following[0][table.kinds]
    [a] = lm.tokenizer.encode("a")
    assert behind[end] == -1
    assert not table.is_over[behind[a]]
    assert table.following[behind[a]][table.kinds[end]] == behind[a]


@pytest.mark.parametrize(
    ("form", "match"),
    [
        ({"regex": "[a-z]{5000}"}, "is too large.*4096 states"),
        ({"regex": "^cat$"}, "can't be a table"),
        ({"regex": "c("}, "unclosed group"),
        ({"choices": "cat"}, "a list of texts"),
        ({"regex": "a", "choices": ["a"]}, "Leave one out"),
    ],
)
def test_what_can_be_no_table_is_refused(make_language_model, form, match):
    lm = make_language_model("gpt2", "byte_pairs")
    with pytest.raises((ValueError, TypeError), match=match):
        make_table(lm, (), **form)
