"""Answers of 200 JSON schemas of growing difficulty: how many are valid, how fast.

SmolLM2-135M-Instruct answers each schema greedily and sampled in `Slots`, 16 at once,
each with a schema of its own; each answer is parsed, and validated by the `jsonschema`
package. Then some are answered eight at once, in turns with the same prompts continued
as free text, as many tokens of each row, and some by `lm.complete` alone, in turns with
as many tokens of free text. Exits with 1 if an answer isn't valid.

The schemas begin with one property of a plain kind. Later ones have more of them, of
more kinds (patterns, formats, bounds, `anyOf`, `oneOf`, `$ref`, arrays, optional ones),
nested up to four deep.
"""

import json
import random
import statistics
import sys
import time
from importlib import metadata

from common import (
    answer_worker,
    describe_machine,
    make_parser,
    print_table,
    run_worker,
)

TOPICS = ("a cat", "a city", "an order", "a book", "a flight", "a recipe", "a robot")
NAMES = ("name", "kind", "size", "tags", "owner", "place", "date", "code", "parts")


def main() -> int:
    """Measure on each backend, print the table, return the exit status."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="of the schemas")
    parser.add_argument("--count", type=int, default=200, help="schemas")
    parser.add_argument("--eights", type=int, default=3, help="timed, eight at once")
    parser.add_argument("--alone", type=int, default=10, help="timed, one at a time")
    parser.add_argument("--tokens", type=int, default=600, help="most of an answer")
    arguments = parser.parse_args()
    last = arguments.first + arguments.count - 1
    setting = f"SmolLM2-135M, float32, schemas {arguments.first} to {last}"
    engine = f"llguidance {metadata.version('llguidance')}"
    print(describe_machine(setting=setting, grammar=engine))
    rows, all_valid = [], True
    for backend in arguments.backends:
        options = {k: v for k, v in vars(arguments).items() if k != "backends"}
        for name, found in run_worker(__file__, backend, **options).items():
            valid, count = found["valid"], found["count"]
            all_valid = all_valid and valid == count
            rows.append([backend, name, f"{valid}/{count}", found["tokens"]])
            if "median" in found:
                form, free = found["form"], found["free"]
                rows[-1] += [f"{form * 1000:.2f}", f"{free * 1000:.2f}"]
                rows[-1] += [f"{form / free:.3f}", f"{found['median']:.3f}"]
            else:
                rows[-1] += [""] * 4
            for problem in found["problems"]:
                print(f"{backend}, {name}: {problem}")
    print_table(
        [
            "backend",
            "answers",
            "valid",
            "tokens",
            "ms/token",
            "free",
            "ratio",
            "median",
        ],
        rows,
    )
    return 0 if all_valid else 1


def make_schema(number: int) -> dict:
    """A schema, the more difficult the larger its number, from 0 to 199."""
    chance = random.Random(number)
    schema = _make_object(chance, number, depth=number // 50)
    schema["$defs"] = {
        "point": {
            "type": "object",
            "properties": {
                "x": {"type": "integer", "minimum": -90, "maximum": 90},
                "y": {"type": "integer", "minimum": 0, "exclusiveMaximum": 180},
            },
            "required": ["x", "y"],
            "additionalProperties": False,
        }
    }
    return schema


def _make_object(chance, number, depth):
    names = chance.sample(NAMES, 1 + min(number // 30, 5))
    properties = {name: _make_value(chance, number, depth) for name in names}
    needed = [name for name in names if number < 20 or chance.random() < 0.7]
    return {
        "type": "object",
        "properties": properties,
        "required": needed or names[:1],
        "additionalProperties": False,
    }


def _make_value(chance, number, depth):
    plain = [
        {"type": "boolean"},
        {"type": "string", "maxLength": chance.randint(5, 40)},
        {"type": "integer", "minimum": chance.randint(-9, 9), "maximum": 5000},
        {"enum": chance.sample(["red", "green", "blue", 1, 2.5, None, True], 3)},
    ]
    later = [
        {"const": chance.choice(["fixed", 42, [1, 2]])},
        {"type": ["integer", "null"], "minimum": 0, "maximum": 99},
        {"type": "string", "pattern": r"^[A-Z]{2}-\d{3,5}$"},
        {"type": "string", "minLength": 3, "maxLength": 12},
        {"type": "string", "format": chance.choice(["date", "uuid", "ipv4"])},
        {"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.25},
    ]
    hard = [
        {"$ref": "#/$defs/point"},
        {"anyOf": [{"type": "string", "maxLength": 8}, {"$ref": "#/$defs/point"}]},
        {"oneOf": [{"const": "none"}, {"type": "integer", "minimum": 1, "maximum": 9}]},
        {
            "allOf": [
                {"type": "integer", "minimum": 10},
                {"type": "integer", "maximum": 20},
            ]
        },
        {
            "type": "array",
            "prefixItems": [
                {"type": "boolean"},
                {"type": "integer", "minimum": 0, "maximum": 9},
            ],
            "items": False,
            "minItems": 2,
        },
        {"type": "string", "pattern": r"^(\w{1,8}@\w{1,8}\.(org|com)|none)$"},
    ]
    kinds = plain + later * (number >= 20) + hard * (number >= 60)
    if depth > 0 and chance.random() < 0.4:
        return _make_object(chance, number // 2, depth - 1)
    if number >= 40 and chance.random() < 0.25:
        least = chance.randint(0, 2)
        return {
            "type": "array",
            "items": chance.choice(kinds),
            "minItems": least,
            "maxItems": least + chance.randint(0, 3),
        }
    return chance.choice(kinds)


def measure(first, count, eights, alone, tokens) -> dict[str, dict]:
    """The worker: by kind of answer, how many are valid, and seconds a token."""
    import keras_gpt
    from keras_gpt.language_model.completion import encode_messages

    lm = keras_gpt.LanguageModel.from_pretrained("smollm2", dtype="float32")
    asked = []
    for number in range(first, first + count):
        topic = TOPICS[number % len(TOPICS)]
        messages = [{"role": "user", "content": f"Describe {topic} as JSON."}]
        asked.append((make_schema(number), encode_messages(lm, messages, tokens)))
    results = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        controls = {"temperature": temperature, "seed": first}
        controls |= {"max_new_tokens": tokens}
        results[name] = _answer_all(lm, asked, controls)
        if eights:
            some = _spread(asked, 8 * eights)
            results[f"8, {name}"] = _measure_together(lm, some, controls)
    if alone:
        results["alone"] = _measure_alone(lm, _spread(asked, alone), tokens)
    return results


def _spread(asked, number):
    """So many of them, from the first to the last."""
    return [asked[i * len(asked) // number] for i in range(number)]


def _add(lm, slots, schema, prompt, controls):
    """Add a prompt, of which the answer is to be of a schema."""
    from keras_gpt.language_model.forms import take_form

    form = take_form(lm, (), {"schema": schema, "stop_ids": lm.stop_ids})
    return slots.add(prompt, form=form, stop_ids=lm.stop_ids, **controls)


def _answer_all(lm, asked, controls):
    """How many of the answers are valid; where a row ends the next begins."""
    from keras_gpt.generation import Slots

    slots, waiting, rows = Slots(lm.model, 16, kept_tokens=0), list(asked), []
    while waiting or slots.num_free < 16:
        while waiting and slots.num_free:
            rows.append(_add(lm, slots, *waiting.pop(0), controls))
        slots.advance(4)  # as the server does
    problems = [
        _validate(schema, lm.tokenizer.decode(row.ids))
        for (schema, _), row in zip(asked, rows, strict=True)
    ]
    return _summarize(problems) | {"tokens": sum(len(row.ids) for row in rows)}


def _measure_together(lm, asked, controls):
    from keras_gpt.generation import Slots

    slots, found = Slots(lm.model, 8, kept_tokens=0), _Found()
    for start in [0, *range(0, len(asked), 8)]:  # the first compiles
        schemas, prompts = zip(*asked[start : start + 8], strict=True)
        begin = time.perf_counter()
        rows = [_add(lm, slots, *one, controls) for one in asked[start : start + 8]]
        form = _run(slots, rows, begin)
        texts = [lm.tokenizer.decode(row.ids) for row in rows]
        lengths = [len(row.ids) for row in rows]
        begin = time.perf_counter()
        rows = [
            slots.add(prompt, **controls | {"max_new_tokens": length})
            for prompt, length in zip(prompts, lengths, strict=True)
        ]
        free = _run(slots, rows, begin)
        found.add(schemas, texts, lengths, form, free)
    return found.result()


def _run(slots, rows, begin):
    while None in [row.finish_reason for row in rows]:
        slots.advance(4)  # as the server does
    return time.perf_counter() - begin


def _measure_alone(lm, asked, tokens):
    from keras_gpt.generation import start
    from keras_gpt.language_model.completion import complete

    found = _Found()
    controls = {"temperature": 0.0, "max_new_tokens": tokens}
    for schema, prompt in [asked[0], *asked]:
        begin = time.perf_counter()
        [answer] = complete(
            lm, [prompt], schema=schema, stop_ids=lm.stop_ids, **controls
        )
        form, length = time.perf_counter() - begin, len(answer.ids)
        # as many tokens, in a cache with the same room
        begin = time.perf_counter()
        start(lm.model, [prompt], **lm.generation_defaults | controls).advance(length)
        free = time.perf_counter() - begin
        found.add([schema], [answer.text], [length], form, free)
    return found.result()


class _Found:
    """What was found; the first that is added only compiles."""

    def __init__(self):
        self.batches = []

    def add(self, schemas, texts, lengths, form, free):
        problems = [_validate(*pair) for pair in zip(schemas, texts, strict=True)]
        self.batches.append((problems, sum(lengths), form, free))

    def result(self):
        problems, lengths, form, free = zip(*self.batches[1:], strict=True)
        problems = [problem for some in problems for problem in some]
        return _summarize(problems) | {
            "tokens": sum(lengths),
            "form": sum(form) / sum(lengths),
            "free": sum(free) / sum(lengths),
            "median": statistics.median(a / b for a, b in zip(form, free, strict=True)),
        }


def _summarize(problems):
    return {
        "count": len(problems),
        "valid": problems.count(None),
        "problems": [problem for problem in problems if problem is not None],
    }


def _validate(schema, text):
    """What is wrong with an answer, or `None`."""
    from jsonschema import Draft202012Validator, ValidationError

    validator = Draft202012Validator(
        schema, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    try:
        validator.validate(json.loads(text))
    except (ValueError, ValidationError) as error:
        return f"{str(error).splitlines()[0]} in {text!r} of {json.dumps(schema)}"
    return None


if __name__ == "__main__":
    if not answer_worker(measure):
        sys.exit(main())
