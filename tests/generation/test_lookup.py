import keras
import numpy as np
import pytest
from keras import ops

import keras_gpt
from keras_gpt import backend
from keras_gpt.generation import Generation
from keras_gpt.generation.lookup import find_draft
from keras_gpt.generation.programs import trace_counts

# texts that repeat themselves, that don't, and that outgrow the context of 32
PROMPTS = [[5, 1, 7, 5, 1, 7, 5, 1], [22], [3, 3, 10, 9, 0, 2, 4, 8, 1, 3, 3]]
LENGTHS = [50, 33, 45]
CONTROLS = {
    "greedy": {"temperature": 0},
    "sampled": {
        "temperature": [0.7, 1.5, 0],
        "top_k": [None, 5, 7],
        "top_p": [0.9, None, None],
        "repetition_penalty": [1.0, 1.3, 0.8],
        "stop_ids": [2],
    },
    "repeating": {"temperature": 0.3, "top_k": None, "repetition_penalty": 0.7},
}


def complete(model, prompts=PROMPTS, **controls):
    run = Generation(model, prompts, **controls)
    run.advance()
    return run


def assert_same(run, expected):
    assert run.ids == expected.ids
    assert run.finish_reasons == expected.finish_reasons
    for ours, theirs in zip(run.log_probs, expected.log_probs, strict=True):
        # float32 sums in another order, at logits of about 10
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
    "variant", [pytest.param("llama", marks=pytest.mark.every_backend), "packed"]
)
def test_text_is_that_without_lookup(models, variant):
    model = models(variant)
    for controls in CONTROLS.values():
        controls = {"max_new_tokens": LENGTHS, **controls}
        expected = complete(model, **controls)
        run = complete(model, lookup_tokens=4, **controls)
        assert_same(run, expected)
        assert run.num_lookup_passes < max(map(len, expected.ids)) - 1
    # of the last controls, whose text repeats most
    assert run.num_lookup_passes < 0.8 * max(LENGTHS)


def test_documents_that_end_within_a_draft_are_left_behind(models):
    model = models("packed")
    prompts = [[5, 0, 6, 5, 0, 6, 5], [0, 0, 0], [1, 2, 0, 1, 2]]
    controls = {"max_new_tokens": LENGTHS, "temperature": 2.0, "top_k": None}
    controls |= {"repetition_penalty": 0.3, "seed": 975}
    expected = complete(model, prompts, **controls)
    assert all(row.count(0) > 2 for row in expected.ids)
    run = complete(model, prompts, lookup_tokens=4, **controls)
    assert_same(run, expected)
    assert run.num_lookup_passes < 0.8 * max(LENGTHS)


@pytest.mark.parametrize("chunk", [1, 3])
def test_streamed_equals_whole(models, chunk):
    model = models("llama")
    controls = {"max_new_tokens": LENGTHS, "lookup_tokens": 4, **CONTROLS["repeating"]}
    whole = complete(model, **controls)
    run = Generation(model, PROMPTS, **controls)
    pieces = [[], [], []]
    while not run.finished:
        goes_on = [reason is None for reason in run.finish_reasons]
        for row, piece in enumerate(run.advance(chunk)):
            # a row's last piece alone may be shorter
            is_last = run.finish_reasons[row] is not None
            assert len(piece) == chunk * goes_on[row] or is_last
            assert len(piece) <= chunk
            pieces[row] += piece
    assert pieces == run.ids
    assert_same(run, whole)
    # tokens that were found early are kept for later calls
    assert run.num_lookup_passes <= whole.num_lookup_passes + 2


def test_a_row_can_be_ended_from_outside(models):
    model = models("llama")
    controls = {"max_new_tokens": LENGTHS, **CONTROLS["repeating"]}
    whole = complete(model, **controls).ids
    run = Generation(model, PROMPTS, lookup_tokens=4, **controls)
    run.advance(5)
    assert run.ids == [row[:5] for row in whole]
    run.stop(0)
    run.advance()
    assert run.ids == [whole[0][:5], whole[1], whole[2]]
    assert run.finish_reasons == ["stop", "length", "length"]


@pytest.mark.every_backend
def test_each_row_is_what_it_would_be_alone(models):
    model = models("llama")
    controls = {"lookup_tokens": 4, **CONTROLS["repeating"]}
    together = keras_gpt.generate(model, PROMPTS, LENGTHS, **controls)
    for row, prompt in enumerate(PROMPTS):
        [alone] = keras_gpt.generate(
            model, [prompt], LENGTHS[row], seed=row, **controls
        )
        assert together[row] == alone


def test_a_stop_id_or_the_last_token_may_come_within_a_draft(models):
    model = models("llama")
    controls = {**CONTROLS["repeating"], "lookup_tokens": 4}
    # of these stop ids and numbers of tokens, some come within drafts
    whole = keras_gpt.generate(model, PROMPTS, LENGTHS, **controls)
    for stop in {*whole[0], *whole[1], *whole[2]}:
        run = complete(model, max_new_tokens=LENGTHS, stop_ids=[stop], **controls)
        for text, row, reason in zip(run.ids, whole, run.finish_reasons, strict=True):
            assert text == (row[: row.index(stop)] if stop in row else row)
            assert reason == ("stop" if stop in row else "length")
    for number in range(1, 17, 3):
        lengths = [number, 33, number + 17]
        run = complete(model, max_new_tokens=lengths, **controls)
        assert run.ids == [row[:n] for row, n in zip(whole, lengths, strict=True)]


@pytest.mark.every_backend
def test_several_tokens_decode_as_one_by_one(models):
    model = models("packed")

    def decode(state, inputs):
        del state
        lengths, token_ids = inputs["lengths"], inputs["token_ids"]
        _, cache = model.prefill(inputs["prompts"], lengths, 16)
        together, end = model.decode(token_ids, cache, lengths)
        # on PyTorch the cache was written into
        _, cache = model.prefill(inputs["prompts"], lengths, 16)
        one_by_one = []
        for t in range(4):
            logits, cache = model.decode(token_ids[:, t], cache, lengths + t)
            one_by_one.append(logits)
        starts = [end["document_start"], cache["document_start"]]
        return together, ops.stack(one_by_one, axis=1), ops.stack(starts)

    inputs = {
        "prompts": np.array([[1, 0, 2, 3, 4, 5], [6, 7, 0, 0, 0, 0]], "int32"),
        "lengths": np.array([6, 2], "int32"),
        "token_ids": np.array([[5, 0, 7, 0], [1, 2, 3, 4]], "int32"),
    }
    inputs = {name: ops.convert_to_tensor(array) for name, array in inputs.items()}
    results = backend.compile_function(decode, model.variables)({}, inputs)
    together, one_by_one, starts = map(ops.convert_to_numpy, results)
    # float32 sums in another order, at logits of about 10
    np.testing.assert_allclose(together, one_by_one, atol=5e-5)
    assert starts.tolist() == [[10, 0]] * 2


def read_draft(text):
    ids = np.full((1, 24), ord("?"), "int32")  # one shape, so that JAX compiles once
    ids[0, : len(text)] = [ord(letter) for letter in text]
    last = ops.convert_to_tensor(np.array([len(text) - 1], "int32"))
    draft = find_draft(ops.convert_to_tensor(ids), last, 8)
    return "".join(map(chr, ops.convert_to_numpy(draft)[0]))


def test_drafts_follow_the_longest_match_and_then_the_last():
    assert read_draft("to be or not to") == " be or n"
    assert read_draft("the cat, the dog, the") == " dog, th"
    # "he " occurs once, "e " twice and " " most often
    assert read_draft("he is. we are. he ") == "is. we a"
    # what ends before the draft does is taken for a loop
    assert read_draft("ababab") == "abababab"
    assert read_draft("xyz123xyz") == "123xyz12"
    # nothing matches: any letters
    assert len(read_draft("abc")) == len(read_draft("a")) == 8


def test_a_text_that_repeats_takes_a_fraction_of_the_passes(models):
    controls = {"temperature": 0, "repetition_penalty": 0.1, "lookup_tokens": 4}
    run = complete(models("llama"), max_new_tokens=LENGTHS, **controls)
    assert [len(row) for row in run.ids] == LENGTHS
    # each adds up to five tokens
    assert max(LENGTHS) / 5 <= run.num_lookup_passes <= max(LENGTHS) / 2


def test_a_language_model_looks_up_too(models):
    model = models("llama")
    tokenizer = keras_gpt.CharacterTokenizer("abcdefghijklmnopqrstuvw")
    lm = keras_gpt.LanguageModel(model, tokenizer)
    controls = {"max_new_tokens": 40, "lookup_tokens": 4, **CONTROLS["repeating"]}
    [ids] = keras_gpt.generate(model, [tokenizer.encode("abcabcab")], **controls)
    text = tokenizer.decode(ids)
    assert lm.generate("abcabcab", **controls) == text
    stop = text[20:23]
    pieces = lm.stream("abcabcab", stop=stop, **controls)
    assert "".join(pieces) == text[: text.index(stop)]
    [completion] = lm.complete("abcabcab", stop=stop, **controls)
    assert completion.text == text[: text.index(stop)]
    assert completion.finish_reason == "stop"


@pytest.mark.every_backend
@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="on PyTorch nothing is traced"
)
def test_other_controls_trace_nothing_again(models):
    model = models("llama")
    keras_gpt.generate(model, PROMPTS, LENGTHS, lookup_tokens=4)
    before = dict(trace_counts)
    assert before["lookup"] > 0
    for controls in CONTROLS.values():
        keras_gpt.generate(model, PROMPTS, LENGTHS, lookup_tokens=4, **controls)
    run = Generation(model, PROMPTS, max_new_tokens=40, lookup_tokens=4)
    while not run.finished:
        run.advance(7)
    assert trace_counts == before


@pytest.mark.parametrize("wrong", [-1, 2.5, "8", None])
def test_wrong_lookup_tokens_are_refused(models, wrong):
    with pytest.raises(ValueError, match="`lookup_tokens` must be an integer"):
        keras_gpt.generate(models("llama"), PROMPTS, lookup_tokens=wrong)
