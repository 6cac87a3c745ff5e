"""What may be asked of the server, in the words of OpenAI's interface.

What a server can't do is refused by name, unless the value asks for nothing. The fields
that OpenAI doesn't know (`top_k`, `min_p`, `repetition_penalty`, `regex`, `choices`)
are those of `LanguageModel.generate`.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from keras_gpt.controls import CONTROLS, PENALTIES
from keras_gpt.generation.slots import MOST_ALTERNATIVES
from keras_gpt.server.tools import NamedTool, Strict, Tool, ToolCall, make_form

# Values that ask for nothing, by the names of fields that aren't supported, or not by
# each kind of requests.
_NOTHING = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
)
_MOST_SEED = 2**63 - 1
_MOST_STOPS = 16
_MOST_MESSAGES = 1024
_MOST_TOOLS = 128


def _control(name, least=None):
    """The type of a control, with its range in the table."""
    control = {**CONTROLS, **PENALTIES}[name]
    bounds = {"gt" if control.is_least_open else "ge": control.least}
    if least is not None:
        bounds = {"ge": least}
    if not math.isinf(control.most):
        bounds["le"] = control.most
    kind = int if control.is_integer else float
    return Annotated[kind | None, Field(description=control.help, **bounds)]


_StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


_IdInName = Annotated[int, Field(strict=False, ge=0)]  # names in JSON are strings
_Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(Strict):
    """What is said besides text while it streams."""

    include_usage: bool = False
    include_obfuscation: bool = False  # there is none


class _Text(Strict):
    type: Literal["text"]

    @property
    def form(self):
        return {}


class _JsonObject(Strict):
    type: Literal["json_object"]

    @property
    def form(self):
        return {"schema": {"type": "object"}}


class _NamedSchema(Strict):
    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema", default_factory=dict)
    strict: bool | None = None  # it always is


class _JsonSchema(Strict):
    type: Literal["json_schema"]
    json_schema: _NamedSchema

    @property
    def form(self):
        return {"schema": self.json_schema.schema_}


class _Request(Strict):
    """What both kinds of requests have."""

    model: str | None = None
    max_tokens: _control("max_new_tokens") = None
    temperature: _control("temperature") = None
    top_p: _control("top_p") = None
    top_k: _control("top_k", least=-1) = None
    min_p: _control("min_p") = None
    repetition_penalty: _control("repetition_penalty") = None
    presence_penalty: _control("presence_penalty") = None
    frequency_penalty: _control("frequency_penalty") = None
    logit_bias: dict[_IdInName, _Bias] | None = None
    seed: Annotated[int | None, Field(ge=0, le=_MOST_SEED)] = None
    n: Annotated[int | None, Field(ge=1)] = None
    stop: (
        _StopString | Annotated[list[_StopString], Field(max_length=_MOST_STOPS)] | None
    ) = None
    response_format: Annotated[
        _Text | _JsonObject | _JsonSchema | None, Field(discriminator="type")
    ] = None
    regex: Annotated[str | None, Field(min_length=1)] = None
    choices: Annotated[list[_StopString] | None, Field(min_length=1)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        nothing = _NOTHING.keys() - cls.model_fields.keys()
        for name in nothing & data.keys():
            value = data[name]
            if value is not None and value not in _NOTHING[name]:
                raise PydanticCustomError(
                    "unsupported",
                    "`{field}` isn't supported by this server. Leave it out.",
                    {"field": name},
                )
        return {name: data[name] for name in data if name not in nothing}

    @model_validator(mode="after")
    def _check_stream_options(self):
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "goes_with",
                "`{field}` is for `stream`: true.",
                {"field": "stream_options"},
            )
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a text."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def form(self) -> dict[str, Any]:
        """What the answer shall be, as of `LanguageModel.generate`."""
        given = {"regex": self.regex, "choices": self.choices}
        form = {} if self.response_format is None else self.response_format.form
        return form | {name: x for name, x in given.items() if x is not None}

    @property
    def sampling(self) -> dict[str, Any]:
        """The controls of sampling that are given, as of `Slots.add`."""
        given = {name: getattr(self, name) for name in _SAMPLING}
        given = {name: value for name, value in given.items() if value is not None}
        if given.get("top_k", 1) < 1:
            given["top_k"] = None
        return given


class CompletionRequest(_Request):
    """`/v1/completions`: texts to continue."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | _Ids
        | Annotated[list[_Ids], Field(min_length=1)]
    )
    echo: bool | None = None
    logprobs: Annotated[
        int | None,
        Field(
            ge=0,
            le=MOST_ALTERNATIVES,
            description="The log-probability of each token, and of the likeliest.",
        ),
    ] = None

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer."""
        return self.max_tokens

    @property
    def wants_log_probs(self) -> bool:
        """Whether the answer has them."""
        return self.logprobs is not None

    @property
    def num_alternatives(self) -> int:
        """How many of the likeliest tokens it has beside each."""
        return self.logprobs or 0

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, as texts or token ids."""
        prompt = self.prompt
        is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
        return [prompt] if is_one else prompt


class _TextPart(Strict):
    type: Literal["text"]
    text: str


def _join(content):
    """The text of a message's content."""
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content


class Message(Strict):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | list[_TextPart], AfterValidator(_join)]
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nothing(cls, data: Any) -> Any:
        """Answers of the `openai` package are sent back with all their fields."""
        if not isinstance(data, dict):
            return data
        data = {name: value for name, value in data.items() if value not in (None, [])}
        return {"content": "", **data} if "tool_calls" in data else data

    @property
    def is_of_tools(self) -> bool:
        """Whether it calls functions, or says what came of a call."""
        return self.role == "tool" or self.tool_calls is not None

    def to_dict(self) -> dict[str, Any]:
        """As `LanguageModel.chat` takes it."""
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": self.content}
        if self.tool_calls is not None:
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class ChatRequest(_Request):
    """`/v1/chat/completions`: a conversation whose last message is to be answered."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=_MOST_MESSAGES)]
    max_completion_tokens: _control("max_new_tokens") = None
    tools: Annotated[list[Tool] | None, Field(max_length=_MOST_TOOLS)] = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MOST_ALTERNATIVES)] = None

    @model_validator(mode="after")
    def _check_top_logprobs(self):
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError(
                "goes_with",
                "`{field}` is for `logprobs`: true.",
                {"field": "top_logprobs"},
            )
        return self

    @model_validator(mode="after")
    def _check_tools(self):
        if self._forced_tools == []:
            raise PydanticCustomError(
                "goes_with",
                "`{field}` asks for a function that `tools` hasn't.",
                {"field": "tool_choice"},
            )
        if self.callable_tools and super().form:
            raise PydanticCustomError(
                "goes_with",
                "`{field}` go without `response_format`, `regex` and `choices` on this "
                "server, unless `tool_choice` is 'none'.",
                {"field": "tools"},
            )
        return self

    @property
    def callable_tools(self) -> list[Tool]:
        """The functions that the answer may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def _forced_tools(self):
        """Those of which the answer must call one, or `None` if it needn't."""
        choice = self.tool_choice
        if choice in (None, "none", "auto"):
            return None
        tools = self.tools or []
        if choice == "required":
            return tools
        return [tool for tool in tools if tool.function.name == choice.function.name]

    @property
    def form(self) -> dict[str, Any]:
        """What the answer shall be, as of `take_form`."""
        tools = self._forced_tools
        return super().form if tools is None else {"tools": make_form(tools)}

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens

    @property
    def wants_log_probs(self) -> bool:
        """Whether the answer has them."""
        return bool(self.logprobs)

    @property
    def num_alternatives(self) -> int:
        """How many of the likeliest tokens it has beside each."""
        return self.top_logprobs or 0
