"""Functions that an answer may call, asked for by the `openai` package itself."""

import json
import string

import jsonschema
import openai
import pytest

from keras_gpt.server.tools import find_calls, split_calls
from tests.server.conftest import make_client, serve
from tests.tiny import make_lm

TEMPLATE = """\
{% for tool in tools or [] %}{{ tool | tojson }}
{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}
{% for call in m.tool_calls or [] %}{% set f = call.function %}<tool_call>
{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}
</tool_call>{% endfor %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}
"""
HI = [{"role": "user", "content": "Hi"}]
PLACE = {"enum": ["here", "there"]}
WEATHER = {
    "properties": {"place": {"$ref": "#/$defs/Place"}, "days": {"enum": [1, 2]}},
    "required": ["place"],
    "additionalProperties": False,
    "$defs": {"Place": PLACE},
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": "What is.", "parameters": parameters},
    }
    for name, parameters in (("now", {}), ("weather", WEATHER))
]
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def lm():
    """Of its own, as the server's belongs to the server."""
    return make_lm(string.printable, TEMPLATE, context_length=1024)


@pytest.fixture(scope="module")
def tools_client():
    lm = make_lm(string.printable, TEMPLATE, context_length=1024)
    with serve(lm, num_slots=2) as server, make_client(server) as client:
        yield client


def chat(client, **fields):
    fields = {"model": "tiny", "messages": HI, "max_tokens": 99, "seed": 3, **fields}
    return client.chat.completions.create(**fields)


def test_a_call_that_must_come_is_valid_and_can_be_answered(tools_client, lm):
    found = chat(tools_client, tools=TOOLS, tool_choice=NAMED, n=2).choices
    for choice in found:
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        [call] = choice.message.tool_calls
        assert call.function.name == "weather"
        jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    one_of_them = chat(tools_client, tools=TOOLS, tool_choice="required").choices[0]
    assert one_of_them.message.tool_calls[0].function.name in ("now", "weather")
    said = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    history = [*HI, found[1].message, said]
    answer = chat(tools_client, messages=history, tools=TOOLS, max_tokens=5)
    called = call.to_dict()
    called["function"]["arguments"] = json.loads(called["function"]["arguments"])
    calling = {"role": "assistant", "content": "", "tool_calls": [called]}
    prompt = lm.chat_template.render([*HI, calling, said], tools=TOOLS)
    assert '"arguments": {"place": ' in prompt
    assert answer.choices[0].message.content == lm.generate(prompt, 5, seed=3)


def test_a_stream_has_the_same_call(tools_client):
    asked = {"tools": TOOLS, "tool_choice": NAMED}
    whole = chat(tools_client, **asked).choices[0].message
    fields = {"model": "tiny", "messages": HI, "max_tokens": 99, "seed": 3}
    with tools_client.chat.completions.stream(**fields, **asked) as stream:
        [choice] = stream.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    [call], [expected] = choice.message.tool_calls, whole.tool_calls
    assert call.function.name == expected.function.name
    assert call.function.arguments == expected.function.arguments
    assert not choice.message.content


def test_what_is_no_call_stays_text(tools_client, lm):
    asked = {"tools": TOOLS, "max_tokens": 40, "temperature": 1.5}
    [choice] = chat(tools_client, **asked).choices
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    prompt = lm.chat_template.render(HI, tools=TOOLS)
    expected = lm.generate(prompt, 40, temperature=1.5, seed=3)
    assert choice.message.content == expected
    events = chat(tools_client, stream=True, **asked)
    streamed = "".join(event.choices[0].delta.content for event in events)
    assert streamed == choice.message.content
    cut = chat(tools_client, **{**asked, "max_tokens": 20}, tool_choice="required")
    assert cut.choices[0].message.content == '<tool_call>\n{"name":'
    untold = chat(tools_client, tools=TOOLS, tool_choice="none", max_tokens=1)
    assert untold.usage.prompt_tokens == chat(tools_client).usage.prompt_tokens


def test_calls_are_found_behind_a_text_that_comes_in_pieces():
    call = (
        '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>'
    )
    text = f"a < b \n{call}\n{call}\n"
    for size in (1, 3, len(text)):
        content = held = ""
        for start in range(0, len(text), size):
            piece, held = split_calls(held + text[start : start + size])
            content += piece
        assert content == "a < b"
        found = find_calls(held, ["f"])
        arguments = [json.loads(c["function"]["arguments"]) for c in found]
        assert arguments == [{"a": "</tool_call>"}] * 2
        assert len({c["id"] for c in found}) == 2
    for other in (
        call + "x",
        call[:-1],
        call.replace('"f"', '"g"'),
        call.replace('"f"', "[]"),
        call.replace('{"a"', '["a"').replace('l>"}', 'l>"]'),
        "<tool_call>" + "[" * 100_000,
    ):
        assert find_calls(other, ["f"]) == []


def nested(depth):
    schema = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def tool(**fields):
    return [{"type": "function", "function": {"name": "f", **fields}}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"tools": tool(name="a b")}, "tools.0.function.name"),
        ({"tools": tool(parameters="x")}, "tools.0.function.parameters"),
        (
            {"tools": tool(parameters={"type": "array"})},
            "tools.0.function.parameters",
        ),
        ({"tools": tool(parameters={"not": {}}), "tool_choice": "required"}, "tools"),
        ({"tools": tool(parameters=nested(400))}, "messages"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": tool(), "tool_choice": NAMED}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "tools"),
        ({"tools": TOOLS, "tool_choice": NAMED, "stop": "a"}, "tools"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "1",
                                "type": "function",
                                "function": {"name": "f", "arguments": "{"},
                            }
                        ],
                    }
                ]
            },
            "messages.0.tool_calls.0.function.arguments",
        ),
    ],
)
def test_wrong_tools_are_refused_by_name(tools_client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(tools_client, **fields)
    assert caught.value.param == param, caught.value


def test_a_model_without_tools_refuses_them(client):
    for fields, param in (
        ({"tools": TOOLS}, "tools"),
        ({"messages": [*HI, {"role": "tool", "content": "hi"}]}, "messages.1"),
    ):
        with pytest.raises(openai.BadRequestError, match="its chat template") as caught:
            chat(client, **fields)
        assert caught.value.param == param
