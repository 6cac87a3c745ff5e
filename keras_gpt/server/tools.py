"""Functions that an answer may call, in OpenAI's words and in the model's.

Models write a call as Hermes and Qwen do, as JSON between two tags:
`<tool_call>`, `{"name": ..., "arguments": {...}}`, `</tool_call>`.
"""

import functools
import json
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from keras_gpt.tokenizers import ChatTemplate

_BEGIN, _END = "<tool_call>", "</tool_call>"


def _check_parameters(schema):
    if schema.get("type", "object") != "object":
        raise PydanticCustomError("schema", "Input should be a schema of an object")
    return schema


def _read_arguments(text):
    try:
        arguments = json.loads(text)
    except (RecursionError, ValueError):
        arguments = None
    if not isinstance(arguments, dict):
        raise PydanticCustomError("arguments", "Input should be an object in JSON")
    return arguments


class Strict(BaseModel):
    """What has no fields but its own, and no values that need be changed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Name(Strict):
    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class _Function(_Name):
    description: str | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_check_parameters)] = {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }
    strict: bool | None = None  # a call that must come always is


class _Called(_Name):
    arguments: Annotated[str, AfterValidator(_read_arguments)]


class Tool(Strict):
    """A function that may be called."""

    type: Literal["function"]
    function: _Function

    def to_dict(self) -> dict[str, Any]:
        """As a chat template takes it."""
        told = {
            "name": self.function.name,
            "description": self.function.description or "",
            "parameters": self.function.parameters,
        }
        return {"type": "function", "function": told}


class NamedTool(Strict):
    """The function that must be called."""

    type: Literal["function"]
    function: _Name


class ToolCall(Strict):
    """A call of an earlier answer."""

    id: str
    type: Literal["function"]
    function: _Called

    def to_dict(self) -> dict[str, Any]:
        """As a chat template takes it, with arguments that were read."""
        return {**dict(self), "function": dict(self.function)}


def takes_tools(lm) -> bool:
    """Whether a model's chat template writes tools, and calls as they are read here."""
    template = lm.chat_template
    if template is None or _BEGIN in lm.tokenizer.special_tokens:
        return False
    return _writes_tools(template.template, tuple(template.special_tokens.items()))


@functools.lru_cache(maxsize=16)  # a server is asked with each request
def _writes_tools(template, special_tokens):
    template = ChatTemplate(template, dict(special_tokens))
    function = {"name": "probe", "arguments": {"a": 1}}
    calls = [{"id": "1", "type": "function", "function": function}]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    tool = Tool(type="function", function=_Function(name="probe")).to_dict()
    try:
        asked = template.render(messages[:1], tools=[tool])
        answered = template.render(messages, tools=[tool])
    except ValueError:
        return False
    call = answered[answered.rfind(_BEGIN) : answered.rfind(_END) + len(_END)]
    return "probe" in asked and bool(find_calls(call, ["probe"]))


def make_form(tools: Sequence[Tool]) -> list[tuple[str, dict[str, Any], str]]:
    """The form of an answer that calls one of some functions, as of `take_form`."""
    return [
        (
            f'{_BEGIN}\n{{"name": "{tool.function.name}", "arguments": ',
            {"type": "object", **tool.function.parameters},
            f"}}\n{_END}",
        )
        for tool in tools
    ]


def split_calls(text: str) -> tuple[str, str]:
    """Cut a text into what stands before its calls, and what are or may become some."""
    starts = range(max(0, len(text) - len(_BEGIN)), len(text) + 1)
    place = text.find(_BEGIN)
    if place < 0:
        place = next(i for i in starts if _BEGIN.startswith(text[i:]))
    before = text[:place].rstrip()
    return before, text[len(before) :]


def find_calls(text: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The calls that a text consists of.

    Args:
        text: From its first tag on.
        names: Of the functions that there are.

    Returns:
        The calls in OpenAI's form, or none where the text is anything else.
    """
    calls = []
    try:
        while text := text.strip():
            inside = text.removeprefix(_BEGIN).lstrip()
            call, end = json.JSONDecoder().raw_decode(inside)
            rest = inside[end:].lstrip()
            if not (text.startswith(_BEGIN) and rest.startswith(_END)):
                return []
            match call:
                case {"name": name, "arguments": dict(arguments), **others} if (
                    name in names and not others
                ):
                    arguments = json.dumps(arguments, allow_nan=False)
                    function = {"name": name, "arguments": arguments}
                case _:
                    return []
            call_id = f"call_{uuid.uuid4().hex}"
            calls.append({"id": call_id, "type": "function", "function": function})
            text = rest.removeprefix(_END)
    except (RecursionError, ValueError):  # it isn't JSON
        return []
    return calls
