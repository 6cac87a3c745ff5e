"""Answers of a given form, JSON and others."""

import json

import jsonschema
import numpy as np
import pydantic
import pytest
from keras import ops

import keras_gpt
from keras_gpt import (
    GPT,
    BytePairTokenizer,
    CharacterTokenizer,
    GPTConfig,
    LanguageModel,
    SentencePieceTokenizer,
)
from keras_gpt.generation import Slots
from keras_gpt.language_model.forms import take_form

END = "<|endoftext|>"
TEXT = '{"name": "a cat", "tags": [true, "12.5", null]} sat on the mat, é.\n'
TOKENIZERS = {
    "characters": lambda: CharacterTokenizer.train([TEXT + "0123456789-eE[]{}frzi"]),
    "byte_pair": lambda: BytePairTokenizer.train([TEXT] * 9, 280, special_tokens=[END]),
    "sentence_piece": lambda: SentencePieceTokenizer.train(
        [TEXT] * 9, 300, special_tokens=[END], progress=False
    ),
}
SCHEMA = {
    "$defs": {"tag": {"enum": ["cat", "mat", None, 7]}},
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-cé]{1,3}$"},
        "size": {"type": "integer", "minimum": -5, "maximum": 99},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 3},
        "is": {"type": "object", "properties": {"on": {"type": "boolean"}}},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
SCHEMA["properties"]["is"]["additionalProperties"] = False
PROMPTS = ["the cat", "12", "a mat."]
CHOICES = ["the cat", "the mat", "ten", "a", "a cat", "sat"]


@pytest.fixture(scope="module")
def lms():
    """A function that makes a model with a kind of tokenizer, once for all tests."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = make(TOKENIZERS[kind]())
        return made[kind]

    return get


def make(tokenizer):
    """A random model with ids that mean nothing behind the tokenizer's."""
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size + 3,
        context_length=32,  # shorter than most answers
        embedding_dimension=16,
        num_layers=1,
        num_heads=2,
    )
    model, random = GPT(config), np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(random.normal(scale=0.5, size=variable.shape))
    return LanguageModel(model, tokenizer)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_answers_are_of_their_schema_and_what_each_is_alone(lms, kind, temperature):
    lm = lms(kind)
    controls = {"temperature": temperature, "top_k": None, "schema": SCHEMA}
    answers = lm.generate(PROMPTS, 200, seed=3, **controls)
    for answer in answers:
        jsonschema.validate(json.loads(answer), SCHEMA)
    # 1 and 2: another than the first row of a batch
    pieces = list(lm.stream(PROMPTS[1], 200, seed=4, **controls))
    assert "".join(pieces) == answers[1]
    slots = Slots(lm.model, 2)
    pieces = lm.stream(PROMPTS[2], 200, seed=5, slots=slots, **controls)
    assert "".join(pieces) == answers[2]


def test_each_token_is_the_likeliest_of_those_that_lead_to_a_choice(lms):
    lm = lms("characters")
    for prompt in PROMPTS:
        text = prompt
        while (answer := text[len(prompt) :]) not in CHOICES or any(
            choice.startswith(answer) and choice != answer for choice in CHOICES
        ):
            ids = np.array([lm.tokenizer.encode(text)])
            logits = ops.convert_to_numpy(lm.model(ids))[0, -1]
            starts = [c for c in CHOICES if c.startswith(answer) and c != answer]
            following = {lm.tokenizer.encode(c[len(answer)])[0] for c in starts}
            best = max(following, key=lambda token: logits[token])
            text += lm.tokenizer.decode([best])
        assert lm.generate(prompt, choices=CHOICES, temperature=0) == answer


@pytest.mark.every_backend
def test_the_same_seed_gives_the_same_answer_on_every_backend(lms):
    controls = {"temperature": 1.5, "top_k": None, "seed": 3}
    answer = lms("characters").generate("the cat", regex="[a-z]{9}", **controls)
    assert answer == "ghmouotat"


def test_a_whole_answer_ends_where_the_model_would_rather_end_it(lms):
    lm = lms("byte_pair")
    answers = lm.generate(
        ["a"] * 60, 50, regex="(cat|mat){1,9}", temperature=1.0, top_k=None
    )
    counts = {answer.count("at") for answer in answers}
    assert {answer[:3] for answer in answers} == {"cat", "mat"}
    assert len(counts) > 1
    for stop_ids in ((), [[]]):
        [found] = lm.complete("a", 3, regex="[a-z]+", stop_ids=stop_ids)
        assert found.finish_reason == "length"  # which is whole, too


def test_samples_are_drawn_from_what_is_allowed_alone(lms):
    lm = lms("characters")
    choices = ["a", "e", "m", "t"]
    ids = [lm.tokenizer.encode(c)[0] for c in choices]
    logits = ops.convert_to_numpy(lm.model(np.array([lm.tokenizer.encode("a")])))
    weights = np.exp(logits[0, -1, ids])
    controls = {"temperature": 1.0, "top_k": 2, "num_return_sequences": 1000}
    answers = lm.generate("a", choices=choices, **controls)
    best = np.argsort(weights)[-2:]  # `top_k` counts none but those
    expected = weights[best] / weights[best].sum()
    found = [answers.count(choices[i]) / len(answers) for i in best]
    np.testing.assert_allclose(found, expected, atol=0.05)  # 3 standard deviations
    assert sum(found) == 1


def test_rows_without_a_form_go_on_beside_those_with_one(lms):
    lm = lms("byte_pair")
    slots, ids = Slots(lm.model, 4), lm.tokenizer.encode("the cat")
    controls = {"max_new_tokens": 60, "seed": 7}
    asked = {"schema": SCHEMA, "stop_ids": lm.stop_ids}
    rows = [slots.add(ids, **controls)]
    rows.append(slots.add(ids, **controls, form=take_form(lm, (), asked)))
    while None in [row.finish_reason for row in rows]:
        slots.advance(4)
    assert rows[0].ids == keras_gpt.generate(lm.model, [ids], **controls)[0]
    alone = lm.complete("the cat", schema=SCHEMA, **controls)[0]
    assert (rows[1].ids, rows[1].finish_reason) == (alone.ids, "stop")
    np.testing.assert_allclose(rows[1].log_probs, alone.log_probs, atol=1e-5)


def test_a_pydantic_model_is_a_schema(lms):
    class Cat(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")

        name: str = pydantic.Field(max_length=4)
        age: int | None = pydantic.Field(ge=0, le=30)

    Cat.model_validate_json(lms("byte_pair").generate("cat", 200, schema=Cat))


@pytest.mark.parametrize(
    ("controls", "match"),
    [
        ({"schema": SCHEMA, "max_new_tokens": 5}, "after 5 tokens. Raise `max_new"),
        ({"regex": "(ca|ce)X"}, "nothing that the tokenizer has can follow"),
        ({"regex": "Xa"}, "No answer can be of this `regex`"),
        ({"regex": "a("}, "`regex` isn't supported: .*unclosed group"),
        ({"regex": ""}, "isn't empty"),
        ({"schema": {"not": {}}}, r"`schema` isn't supported: .*\[\"not\"\]"),
        ({"schema": {"const": {1}}}, "isn't JSON"),
        ({"schema": "{}"}, "as a dictionary"),
        ({"choices": "abc"}, "a list of texts"),
        ({"choices": ["a", ""]}, "a list of texts"),
        ({"schema": SCHEMA, "num_beams": 2}, "neither beams nor lookup"),
        ({"schema": SCHEMA, "lookup_tokens": 2}, "neither beams nor lookup"),
        ({"schema": SCHEMA, "stop": "a"}, "`stop` would cut"),
        ({"regex": "a", "choices": ["a"]}, "regex and choices"),
        ({"regex": "a", "stop_ids": [[1], [1, 2]]}, "end with the same ids"),
        ({"regx": "a"}, "Did you mean 'regex'"),
        ({"tools": [("a", {}, "")]}, "Unknown control"),
    ],
)
def test_what_is_no_form_or_no_answer_is_said(lms, controls, match):
    with pytest.raises((ValueError, TypeError), match=match):
        lms("characters").generate("the cat", temperature=0, **controls)
    if "max_new_tokens" in controls:
        with pytest.raises(ValueError, match=match):
            list(lms("characters").stream("the cat", temperature=0, **controls))
