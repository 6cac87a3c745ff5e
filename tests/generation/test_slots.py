import keras
import numpy as np
import pytest

import keras_gpt
from keras_gpt.generation import Slots
from keras_gpt.generation.programs import trace_counts
from keras_gpt.generation.scoring import find_alternatives

CONTROLS = {"max_new_tokens": 12, "temperature": 0}
LONG = [int(i) for i in np.random.default_rng(0).integers(1, 23, 24)]
STOP_IDS = range(2, 9)
# of packed documents, a separator, 0, in what is kept; as many as other tests have rows
REQUESTS = [
    ([*LONG[:9], 0, *LONG[9:]], {"max_new_tokens": 30, "temperature": 0}),
    ([3], {"max_new_tokens": 2, "seed": 2**40, "repetition_penalty": 1.5}),
    ([*LONG[:9], 0, *LONG[9:16], 5], {"max_new_tokens": 9, "stop_ids": STOP_IDS}),
    ([*LONG[:9], 0, *LONG[9:16], 6], {"max_new_tokens": 17, "temperature": 1.4}),
]


def come_and_go(slots):
    """Rows of all requests, which begin at different times."""
    rows, waiting = [], list(REQUESTS)
    while waiting or None in [row.finish_reason for row in rows]:
        if waiting and slots.num_free:
            prompt, controls = waiting.pop(0)
            rows.append(slots.add(prompt, **controls))
        slots.advance(3)
    return rows


@pytest.mark.every_backend
def test_rows_that_come_and_go_are_what_each_is_alone(models):
    model = models("packed")
    slots = Slots(model, num_slots=2)
    rows = come_and_go(slots)
    # a row of a batch is what it is alone: test_generate.py
    prompts = [prompt for prompt, _ in REQUESTS]
    names = ("max_new_tokens", "temperature", "seed", "repetition_penalty")
    controls = {name: [getattr(row, name) for row in rows] for name in names}
    whole = keras_gpt.generate(model, prompts, **controls)
    ends = [i for i, token in enumerate(whole[2]) if token in STOP_IDS]
    assert [row.ids for row in rows] == [*whole[:2], whole[2][: ends[0]], whole[3]]
    assert len(prompts[0]) + len(rows[0].ids) > model.config.context_length
    assert [row.num_reused for row in rows] == [0, 0, 17, 17]
    assert [row.finish_reason for row in rows] == ["length", "length", "stop", "length"]
    assert slots.num_free == 2


@pytest.mark.every_backend
@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="on PyTorch nothing is traced"
)
def test_rows_that_come_later_trace_nothing_again(models):
    slots = Slots(models("packed"), num_slots=2)
    come_and_go(slots)
    before = dict(trace_counts)
    come_and_go(slots)
    assert trace_counts == before


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_a_kept_beginning_reads_as_one_that_is_read(models, variant):
    model = models(variant)
    slots, forgetful = Slots(model, 2), Slots(model, 2, kept_tokens=0)
    first = slots.add(LONG[:20], **CONTROLS)
    slots.advance(20)
    prompt = [*first.prompt, *first.ids[:5], 1, 2]
    rows = slots.add(prompt, **CONTROLS), forgetful.add(prompt, **CONTROLS)
    while None in [row.finish_reason for row in rows]:
        slots.advance()
        forgetful.advance()
    assert [row.num_reused for row in rows] == [25, 0]
    assert rows[0].ids == rows[1].ids
    # float32 sums in another order, at logits of about 10
    np.testing.assert_allclose(rows[0].log_probs, rows[1].log_probs, atol=1e-4)


def test_a_slot_is_free_at_once_when_its_row_is_stopped(models):
    model = models("gpt2")
    whole = keras_gpt.generate(model, [LONG, [3]], **CONTROLS)
    slots = Slots(model, num_slots=2)
    rows = [slots.add(prompt, **CONTROLS) for prompt in (LONG, [3])]
    with pytest.raises(RuntimeError, match="No slot is free of 2"):
        slots.add([1])
    slots.advance(3)
    slots.stop(rows[0])
    assert slots.num_free == 1
    assert rows[0].finish_reason == "stop"
    assert rows[0].ids == whole[0][:3]
    unread = slots.add(LONG, **CONTROLS)
    slots.stop(unread)  # before anything was read
    assert unread.ids == []
    slots.advance(20)
    assert rows[1].ids == whole[1]
    assert slots.num_free == 2


def test_bias_and_penalties_change_the_row_that_asks_for_them(models, next_logits):
    model = models("gpt2")
    slots = Slots(model, 2)
    bias = {4: 9.0, 5: -100, 6: 8.5}
    asked = {"presence_penalty": 1.5, "frequency_penalty": 2.0, "logit_bias": bias}
    row, plain = slots.add([3, 1], **asked, **CONTROLS), slots.add([3, 1], **CONTROLS)
    while slots.num_free < 2:
        slots.advance(5)
    assert [plain.ids] == keras_gpt.generate(model, [[3, 1]], **CONTROLS)
    texts = [[3, 1, *row.ids[:n]] for n in range(12)]
    for n, logits in enumerate(next_logits(model, texts)):
        counts = np.bincount(row.ids[:n], minlength=23)
        logits[list(bias)] += list(bias.values())
        assert row.ids[n] == (logits - 1.5 * (counts > 0) - 2.0 * counts).argmax()
    assert row.ids != plain.ids
    assert len(set(row.ids)) > 3


def test_alternatives_are_those_that_the_model_finds_in_the_text(models):
    model = models("gpt2")
    slots = Slots(model, 2)
    asked = {"max_new_tokens": 12, "seed": 3}
    rows = slots.add([3, 1], num_alternatives=4, **asked), slots.add([3, 1], **asked)
    while slots.num_free < 2:
        slots.advance(5)
    assert rows[0].ids == rows[1].ids
    assert rows[1].alternatives == []
    _, ids, log_probs = find_alternatives(model, [3, 1, *rows[0].ids])
    found = np.array(rows[0].alternatives)
    np.testing.assert_array_equal(found[..., 0], ids[1:-1, :4])
    # float32 sums in another order
    np.testing.assert_allclose(found[..., 1], log_probs[1:-1, :4], atol=1e-4)


def test_slots_check_what_they_are_given(models):
    slots = Slots(models("gpt2"))
    with pytest.raises(ValueError, match="`num_alternatives` must be"):
        slots.add([1], num_alternatives=21)
    with pytest.raises(ValueError, match="Prompt 0 is empty"):
        slots.add([])
    with pytest.raises(ValueError, match="`temperature` must be"):
        slots.add([1], temperature=-1)
    with pytest.raises(ValueError, match="`presence_penalty` must be"):
        slots.add([1], presence_penalty=3)
    with pytest.raises(ValueError, match="`logit_bias` must have"):
        slots.add([1], logit_bias={"1": 4})
    with pytest.raises(ValueError, match="logit_bias"):
        slots.add([1], logit_bias={23: 4})
    with pytest.raises(TypeError, match="Unknown control"):
        slots.add([1], warmth=1)
    with pytest.raises(ValueError, match="`num_slots` must be"):
        Slots(models("gpt2"), 0)
    assert slots.num_free == 8
