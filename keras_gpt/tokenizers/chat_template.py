"""`ChatTemplate`: from messages to the text that a chat model was trained to read."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from keras_gpt.tokenizers.base import Tokenizer

_LONGEST = 10_000_000  # characters of a rendered conversation, and rounds of its loops


@dataclass
class ChatTemplate:
    """A chat model's own template, a Jinja program that came with its weights.

    It runs in a sandbox: it can read the messages and nothing else, and what it makes
    is limited in size.

    Args:
        template: The Jinja source.
        special_tokens: What the template may name, such as `{"bos_token": "<s>"}`.

    Raises:
        ValueError: The template isn't Jinja.

    References:
        - [Chat templates](https://huggingface.co/docs/transformers/chat_templating)
        - [Jinja's sandbox](https://jinja.palletsprojects.com/en/stable/sandbox/)

    Example:

    >>> from keras_gpt.tokenizers import ChatTemplate
    >>> template = ChatTemplate(
    ...     "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}"
    ...     "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    ...     {"eos_token": "</s>"})
    >>> template.render([{"role": "user", "content": "Hi"}])
    '[user]Hi</s>[assistant]'
    """

    template: str
    special_tokens: dict[str, str] | None = None

    def __post_init__(self):
        import jinja2

        self.special_tokens = dict(self.special_tokens or {})
        try:
            self._program = _environment().from_string(self.template)
        # the last two: what is nested too deep, for Jinja or for Python
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise ValueError(
                f"The chat template isn't valid Jinja: {error}."
            ) from error

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Write a conversation as one text.

        Args:
            messages: Each with `"role"` (`"system"`, `"user"` or `"assistant"`) and
                `"content"`.
            add_generation_prompt: Whether the text ends where an answer begins.
            **variables: Others that the template knows, such as `enable_thinking`.

        Raises:
            ValueError: A message lacks something, the template refuses the
                conversation, or it does what the sandbox forbids.
        """
        check_messages(messages)
        budget = _Budget()
        values = {
            **self.special_tokens,
            "strftime_now": lambda form: datetime.now().strftime(form),
            **variables,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "raise_exception": _refuse,
            "range": budget.range,
        }
        text = []
        try:
            for piece in self._program.generate(values):
                text.append(piece)
                budget.spend(len(piece))
        # what a foreign program raises can be anything
        except Exception as error:
            raise ValueError(
                f"The chat template can't write these messages: {error}"
            ) from error
        return "".join(text)

    def to_dict(self) -> dict[str, Any]:
        """The constructor's arguments by name, ready for JSON."""
        return {"template": self.template, "special_tokens": self.special_tokens}


def check_messages(messages: Sequence[dict[str, Any]]) -> None:
    """Raise `ValueError` unless these are messages with a role and a content."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(
            "`messages` must be a list such as [{'role': 'user', 'content': 'Hi'}]. "
            f"Received: {messages!r}."
        )
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not all(
            isinstance(message.get(name), str) for name in ("role", "content")
        ):
            raise ValueError(
                f"Message {number} must be a dictionary with the strings 'role' and "
                f"'content'. Received: {message!r}."
            )


def encode_chat(
    template: ChatTemplate | None,
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    most: int,
    **variables: Any,
) -> list[int]:
    """Token ids of a conversation, ready for the answer.

    Special tokens that messages and variables spell are ordinary text; only the
    template's own count. Where the whole is too long, the oldest messages are left out,
    but not a system message at the beginning.

    Args:
        template: The model's.
        tokenizer: The model's.
        messages: As for `ChatTemplate.render`.
        most: Most ids.
        **variables: As for `ChatTemplate.render`.

    Raises:
        ValueError: There is no template, or the last message alone is too long.
    """
    if template is None:
        raise ValueError(
            "The model has no chat template: it wasn't tuned to chat, or its template "
            "was lost. Use generate, or give LanguageModel a `chat_template`."
        )
    check_messages(messages)
    (messages, variables), mark = _shield([messages, variables], tokenizer)
    while True:
        ids = _encode(tokenizer, template.render(messages, **variables), mark)
        if len(ids) <= most:
            return ids
        shorter = leave_out_oldest(messages)
        if shorter is None:
            raise ValueError(
                f"The last message is too long. Received: {len(ids)} tokens with the "
                f"template; there is room for {most}. Shorten it."
            )
        messages = shorter


def leave_out_oldest(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """A conversation from its next user message on, or `None` where there is none.

    A system message at the beginning stays.
    """
    has_system = messages[0]["role"] == "system"
    for index, message in enumerate(messages):
        if index > has_system and message["role"] == "user":
            return [*messages[:has_system], *messages[index:]]
    return None


def encode_answers(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    stop_ids: Sequence[int],
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them its assistant wrote.

    Each answer is encoded apart from what comes before it, as it is when the model
    writes it.

    Args:
        template: The model's.
        tokenizer: The model's.
        messages: As for `ChatTemplate.render`, of which the last is the assistant's.
        stop_ids: Ids that end an answer; the first one after each is the answer's.
            Where the template writes none, one is added at the end.

    Returns:
        The ids, and for each whether it is part of an answer.

    Raises:
        ValueError: The last message isn't the assistant's, or the template writes
            a message otherwise when others follow.
    """
    check_messages(messages)
    if messages[-1]["role"] != "assistant":
        raise ValueError(
            "The last message must be the assistant's, which is what the model shall "
            f"learn. Received: role={messages[-1]['role']!r}."
        )
    messages, mark = _shield(messages, tokenizer)
    ids, is_answer, done = [], [], ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = template.render(messages[:index])
        after = template.render(messages[: index + 1], add_generation_prompt=False)
        if not (before.startswith(done) and after.startswith(before)):
            raise ValueError(
                "The chat template writes earlier messages otherwise when others "
                "follow. Make of each answer a record of its own."
            )
        context = _encode(tokenizer, before[len(done) :], mark)
        answer = _encode(tokenizer, after[len(before) :], mark)
        ends = [i for i, token_id in enumerate(answer) if token_id in stop_ids]
        length = ends[0] + 1 if ends else len(answer)
        ids += context + answer
        is_answer += [False] * len(context)
        is_answer += [place < length for place in range(len(answer))]
        done = after
    if not ends and stop_ids:  # a template that ends no turn
        return [*ids, stop_ids[0]], [*is_answer, True]
    # what a template writes behind the last end of turn is never written by a model
    last = len(is_answer) - is_answer[::-1].index(True)
    return ids[:last], is_answer[:last]


def _encode(tokenizer, text, mark):
    """Ids of a rendered text, in which special tokens with a mark inside are text."""
    if mark is None:
        return tokenizer.encode(text, allow_special=True)
    ids = []
    for part in tokenizer.split_special(text):
        is_text = isinstance(part, str)
        ids += tokenizer.encode(part.replace(mark, "")) if is_text else [part]
    return ids


def _shield(value, tokenizer):
    """Put a mark into every special token that a text in a JSON value spells.

    Returns:
        The value and the mark, `None` where no text spells any.
    """
    names = [name for name in tokenizer.special_tokens if name]
    spelled = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")
    texts = []
    try:
        _map_texts(texts.append, value)
    except RecursionError:
        raise ValueError("Messages and variables are nested too deep.") from None
    if not any(map(spelled.search, texts)):
        return value, None
    # noncharacters first, which text doesn't hold but may
    used = set("".join(texts))
    mark = next(chr(c) for c in range(0xFDD0, 0x110000) if chr(c) not in used)

    def shield(text):
        while spelled.search(text):
            text = spelled.sub(lambda m: m[0][:1] + mark + m[0][1:], text)
        return text

    return _map_texts(shield, value), mark


def _map_texts(function, value):
    """A JSON value with other texts, names too."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {
            _map_texts(function, name): _map_texts(function, item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_map_texts(function, item) for item in value]
    return value


class _Budget:
    """What one rendering may use, so that no template fills memory or runs forever."""

    def __init__(self):
        self._left = _LONGEST

    def spend(self, amount):
        self._left -= amount
        if self._left < 0:
            raise ValueError("it goes on without end")

    def range(self, *limits):
        numbers = range(*limits)
        self.spend(len(numbers))
        return numbers


def _refuse(message):
    raise ValueError(message)


def _environment():
    """Jinja as Transformers sets it up, with smaller powers."""
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**", "%"])

        def call_binop(self, context, operator, left, right):
            # what makes text or numbers that fill the memory
            numbers = isinstance(left, int | float) and isinstance(right, int | float)
            if operator == "**" or (operator in "*%" and not numbers):
                raise ValueError(f"{operator} isn't allowed here")
            if operator == "+" and isinstance(left, str | list):
                _Budget().spend(len(left) + len(right))
            return super().call_binop(context, operator, left, right)

    class Generation(Extension):
        """Transformers' mark around what the assistant wrote: here just what it is."""

        tags = frozenset(["generation"])

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    for name in ("center", "format"):
        del environment.filters[name]
    del environment.globals["lipsum"]
    return environment


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
