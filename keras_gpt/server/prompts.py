"""From requests to what the scheduler is asked for, within the server's limits."""

import secrets
from collections.abc import Sequence
from typing import Any

from keras_gpt.generation.rows import check_prompts
from keras_gpt.language_model.completion import encode_messages, encode_prompts
from keras_gpt.language_model.forms import take_form
from keras_gpt.server.errors import ApiError
from keras_gpt.server.requests import ChatRequest, CompletionRequest
from keras_gpt.server.scheduler import Choice
from keras_gpt.server.settings import Settings
from keras_gpt.server.tools import takes_tools

_COMPLETION_TOKENS = 16  # where none are asked for, as OpenAI has it
_CHAT_TOKENS = 1024


def make_choices(
    lm, settings: Settings, request: CompletionRequest | ChatRequest
) -> list[Choice]:
    """What a request asks for, prompt by prompt, `n` times each.

    Args:
        lm: A `LanguageModel`.
        settings: The server's.
        request: The request.

    Raises:
        ApiError: It asks for more than the server gives, or for what the model can't.
    """
    is_chat = isinstance(request, ChatRequest)
    most = request.most_tokens
    if most is None:
        most = _CHAT_TOKENS if is_chat else _COMPLETION_TOKENS
        most = min(most, settings.max_tokens)
    check_limit(settings, "max_tokens", most)
    count = request.n or 1
    num_prompts = 1 if is_chat else len(request.prompts)
    check_limit(settings, "max_choices", num_prompts * count, "n")
    if not is_chat and request.echo and request.wants_log_probs:
        raise ApiError(
            400, "`echo` goes without `logprobs` on this server.", param="echo"
        )
    if is_chat:
        prompts = [_encode_chat(lm, request, most)]
    else:
        prompts = encode_texts(lm, request.prompts)
    # like texts are no surprise where a seed is given, and else no use
    seed = secrets.randbits(31) if request.seed is None else request.seed
    controls = {
        "max_new_tokens": most,
        "num_alternatives": request.num_alternatives,
        **request.sampling,
    }
    form = _make_form(lm, request)
    choices = []
    for i, ids in enumerate(ids for ids in prompts for _ in range(count)):
        own = {**controls, "seed": seed + i}
        if form is not None:
            own["form"] = form.copy()
        choices.append(make_choice(lm, ids, own, request.stops))
    return choices


def _encode_chat(lm, request, most):
    """The ids of a conversation, with the tools that its template writes."""
    tools = [tool.to_dict() for tool in request.callable_tools]
    used = [m.is_of_tools for m in request.messages]
    if (tools or any(used)) and not takes_tools(lm):
        raise ApiError(
            400,
            "`tools` aren't supported by this model: its chat template has none, or "
            "writes calls otherwise than as <tool_call>. Leave out `tools`, and "
            "messages of tools.",
            param="tools" if tools else f"messages.{used.index(True)}",
        )
    messages = [message.to_dict() for message in request.messages]
    variables = {"tools": tools} if tools else {}
    return _refuse("messages", encode_messages, lm, messages, most, **variables)


def _make_form(lm, request):
    """The form that the answers shall have, if any."""
    asked = request.form
    field = next(iter(asked), None)
    param = "response_format" if field == "schema" else field
    tools = asked.pop("tools", None)
    asked["stop_ids"] = lm.stop_ids
    return _refuse(param, take_form, lm, request.stops, asked, tools)


def make_choice(
    lm, prompt_ids: list[int], controls: dict[str, Any], stop: Sequence[str] = ()
) -> Choice:
    """A choice with the model's own controls where none are given."""
    controls = {"stop_ids": lm.stop_ids, **lm.generation_defaults, **controls}
    return Choice(prompt_ids, controls, tuple(stop))


def encode_texts(
    lm, prompts: Sequence[str | list[int]], param: str = "prompt"
) -> list[list[int]]:
    """Token ids of prompts that are texts or token ids already, checked.

    Args:
        lm: A `LanguageModel`.
        prompts: The prompts.
        param: The field of the request that they are.

    Raises:
        ApiError: One can't be encoded, or is longer than the context.
    """
    ids = [
        _refuse(param, encode_prompts, lm.tokenizer, prompt)[0]
        if isinstance(prompt, str)
        else prompt
        for prompt in prompts
    ]
    return _refuse(param, check_prompts, ids, lm.model.config)


def check_limit(
    settings: Settings, name: str, value: int, param: str | None = None
) -> None:
    """Refuse more than the server gives.

    Args:
        settings: The server's.
        name: The limit's, in the settings.
        value: What is asked for.
        param: The field of the request that asks for it. Defaults to the limit's name.

    Raises:
        ApiError: It is more.
    """
    most = getattr(settings, name)
    if value > most:
        what = name.removeprefix("max_")
        raise ApiError(
            400,
            f"This server gives at most {most} {what} to a request. Received: {value}.",
            param=param or name,
            code="limit_exceeded",
        )


def _refuse(param, function, *arguments, **variables):
    """What a function returns; its `ValueError` is the request's."""
    try:
        return function(*arguments, **variables)
    except ValueError as error:
        code = "context_length_exceeded" if "long" in str(error) else None
        raise ApiError(400, str(error), param=param, code=code) from error
