"""Functions that an answer may call, in OpenAI's words and in the model's.

Models write a call as Hermes and Qwen do, as JSON between two tags:
`<tool_call>`, `{"name": ..., "arguments": {...}}`, `</tool_call>`.
"""

import json
import uuid
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
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


class _Function(BaseModel):
    model_config = _STRICT

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_check_parameters)] | None = (
        None
    )
    strict: bool | None = None  # a call that must come always is


class Tool(BaseModel):
    """A function that may be called."""

    model_config = _STRICT

    type: Literal["function"]
    function: _Function

    @property
    def schema(self) -> dict[str, Any]:
        """Of the arguments."""
        if self.function.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return self.function.parameters

    def to_dict(self) -> dict[str, Any]:
        """As a chat template takes it."""
        told = {
            "name": self.function.name,
            "description": self.function.description or "",
            "parameters": self.schema,
        }
        return {"type": "function", "function": told}


class _Name(BaseModel):
    model_config = _STRICT

    name: str


class NamedTool(BaseModel):
    """The function that must be called."""

    model_config = _STRICT

    type: Literal["function"]
    function: _Name


class _Called(BaseModel):
    model_config = _STRICT

    name: str
    arguments: Annotated[str, AfterValidator(_read_arguments)]


class ToolCall(BaseModel):
    """A call of an earlier answer."""

    model_config = _STRICT

    id: str
    type: Literal["function"] = "function"
    function: _Called

    def to_dict(self) -> dict[str, Any]:
        """As a chat template takes it, with arguments that were read."""
        function = dict(self.function)
        return {"id": self.id, "type": "function", "function": function}


def takes_tools(lm) -> bool:
    """Whether a model's chat template writes tools, and calls as they are read here."""
    if lm.chat_template is None or _BEGIN in lm.tokenizer.special_tokens:
        return False
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": []},
    ]
    called = {"name": "probe", "arguments": {"a": 1}}
    messages[1]["tool_calls"].append({"type": "function", "function": called})
    function = _Function(name="probe")
    tools = [Tool(type="function", function=function).to_dict()]
    try:
        asked = lm.chat_template.render(messages[:1], tools=tools)
        text = lm.chat_template.render(messages, tools=tools)
    except ValueError:
        return False
    call = text[text.rfind(_BEGIN) :].partition(_END)
    return "probe" in asked and bool(find_calls("".join(call[:2]), ["probe"]))


def make_form(tools: Sequence[Tool]) -> list[tuple[str, dict[str, Any], str]]:
    """The form of an answer that calls one of some functions, as of `take_form`."""
    return [
        (
            f'{_BEGIN}\n{{"name": "{tool.function.name}", "arguments": ',
            {"type": "object", **tool.schema},
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


def find_calls(text: str, names: Collection[str]) -> list[dict[str, Any]]:
    """The calls that a text consists of.

    Args:
        text: From its first tag on.
        names: Of the functions that there are.

    Returns:
        The calls in OpenAI's form, or none where the text is anything else.
    """
    calls = []
    decoder = json.JSONDecoder()
    try:
        while text := text.strip():
            inside = text.removeprefix(_BEGIN).lstrip()
            call, end = decoder.raw_decode(inside)
            rest = inside[end:].lstrip()
            is_call = text.startswith(_BEGIN) and rest.startswith(_END)
            if not (is_call and isinstance(call, dict) and call.get("name") in names):
                return []
            arguments = call.get("arguments")
            if call.keys() != {"name", "arguments"} or not isinstance(arguments, dict):
                return []
            arguments = json.dumps(arguments, allow_nan=False)
            function = {"name": call["name"], "arguments": arguments}
            call = {"id": f"call_{uuid.uuid4().hex}", "type": "function"}
            calls.append({**call, "function": function})
            text = rest.removeprefix(_END)
    except (RecursionError, TypeError, ValueError):  # no JSON, or a name that is a list
        return []
    return calls
