"""Forms that an answer may have to have: JSON, a regular expression, a choice."""

import json
import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from keras_gpt.controls import FORMS
from keras_gpt.generation.rows import are_lists, check_stop_ids
from keras_gpt.installed import require
from keras_gpt.tokenizers import Tokenizer

# how JSON is written, as by `json.dumps`: small models lose themselves in white space
_LAYOUT = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
# the tokenizers as the library wants them, with an end behind the last id
_TOKENIZERS = WeakKeyDictionary()


class GrammarForm:
    """A `keras_gpt.generation.form.Form` that llguidance keeps watch over.

    Args:
        matcher: An `LLMatcher`.
        vocab_size: The model's.
        end: The id that stands for all stop ids.
        stop_ids: Ids that end an answer.

    References:
        - [llguidance](https://github.com/guidance-ai/llguidance)
    """

    def __init__(self, matcher, vocab_size: int, end: int, stop_ids: Sequence[int]):
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._end = end
        self._stop_ids = list(stop_ids)
        self._look()

    def copy(self) -> "GrammarForm":
        """The form of another answer, which stands where this one does."""
        matcher = self._matcher.deep_copy()
        return GrammarForm(matcher, self._vocab_size, self._end, self._stop_ids)

    def advance(self, token_ids: list[int]) -> None:
        """Take the tokens that were added."""
        if token_ids and not self.is_over:
            self._matcher.consume_tokens(token_ids)
            self._look()

    def _look(self):
        """Find out what may follow."""
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        bits = allocate_token_bitmask(1, self._end + 1)
        fill_next_token_bitmask(self._matcher, bits)
        bits = np.unpackbits(bits.view("uint8"), bitorder="little").astype(bool)
        self.allowed = np.zeros(self._vocab_size, bool)
        self.allowed[: self._end] = bits[: self._end]
        self.is_whole = self._matcher.is_accepting()
        self.is_over = self._matcher.is_stopped() or not self.allowed.any()
        self.allowed[self._stop_ids] = self.is_whole
        self.problem = None
        if self.is_over and not self.is_whole:
            self.problem = "nothing that the tokenizer has can follow"


def take_form(
    lm,
    stop: Sequence[str],
    controls: dict[str, Any],
    tools: Sequence[tuple[str, dict[str, Any], str]] | None = None,
) -> GrammarForm | None:
    """Take the form that answers shall have out of what a caller asked for.

    Args:
        lm: A `LanguageModel`.
        stop: Strings that end an answer, which don't go with a form.
        controls: As of `keras_gpt.generate`, with `stop_ids`, and `schema`, `regex` or
            `choices` as of `LanguageModel.generate`, which are taken out.
        tools: Texts, each with the JSON schema of what follows and the text behind
            that, of which the answer is one.

    Returns:
        The form, of which each answer needs a copy, or `None`.

    Raises:
        ImportError: llguidance isn't installed.
        TypeError: A form is of another type.
        ValueError: There are two forms, or none can be made of it.
    """
    asked = {name: controls.pop(name, None) for name in FORMS} | {"tools": tools}
    asked = {name: form for name, form in asked.items() if form is not None}
    if not asked:
        return None
    if len(asked) > 1:
        raise ValueError(
            f"An answer has one form. Received: {' and '.join(asked)}. Leave one out."
        )
    if stop:
        raise ValueError(
            f"`stop` would cut an answer of a given form. Received: stop={stop!r}. "
            "Leave it out: the form says where the answer ends."
        )
    [[name, form]] = asked.items()
    require("grammar", f"`{name}`", "llguidance")
    grammar = _MAKERS[name](form)
    vocab_size = lm.model.config.vocab_size
    stop_ids = _join_stop_ids(controls["stop_ids"], vocab_size)
    return _make_form(lm.tokenizer, vocab_size, stop_ids, name, grammar)


def _join_stop_ids(stop_ids, vocab_size):
    """The stop ids of all prompts, also where they are given for each."""
    lists = stop_ids if are_lists(stop_ids) else [stop_ids]
    kinds = {frozenset(check_stop_ids(ids, vocab_size)) - {-1} for ids in lists}
    if len(kinds) > 1:
        raise ValueError(
            "Answers of a form end with the same ids. Received: "
            f"stop_ids={list(stop_ids)}, given or those of each `adapter`. Give one "
            "list for all, or ask for these answers one by one."
        )
    return sorted(*kinds)


def _make_form(tokenizer, vocab_size, stop_ids, name, grammar):
    import llguidance

    if tokenizer not in _TOKENIZERS:
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
        _TOKENIZERS[tokenizer] = llguidance.LLTokenizer(wrapper)
    # any tokens that spell the form, not only those that the tokenizer would choose
    grammar = f'%llguidance {{"no_forcing": true}}\nstart: {grammar}'
    matcher = llguidance.LLMatcher(_TOKENIZERS[tokenizer], grammar, log_level=0)
    if matcher.is_error():
        raise ValueError(f"`{name}` isn't supported: {_explain(matcher)}.")
    form = GrammarForm(matcher, vocab_size, tokenizer.vocab_size, stop_ids)
    if form.problem or not form.allowed.any():
        why = form.problem or "it begins with what `stop_ids` has"
        raise ValueError(f"No answer can be of this `{name}`: {why}.")
    return form


class _Vocabulary:
    """A tokenizer's ids, as `llguidance.TokenizerWrapper` wants them."""

    def __init__(self, tokenizer: Tokenizer):
        end = tokenizer.vocab_size
        tokens = [tokenizer.decode_bytes([token_id]) for token_id in range(end)]
        self.tokens = [*tokens, b"<end>"]
        self.special_token_ids = [*tokenizer.special_tokens.values(), end]
        self.eos_token_id, self.bos_token_id = end, None

    def __call__(self, text):
        """Ids of a text, which nobody asks for as nothing is forced."""
        raise NotImplementedError


def _explain(matcher):
    """What is wrong with a grammar, without where it is in ours."""
    message = matcher.get_error().split("\n   1 |")[0]
    message = re.sub(r"^at \d+\(\d+\): |failed to compile JSON schema: ", "", message)
    message = " ".join(message.split())
    # of a long expression the beginning, and what is wrong
    message = re.sub(r"^(.{200}).*(.{100})$", r"\1 ... \2", message)
    return message.removesuffix(".")


def _from_schema(schema):
    if hasattr(schema, "model_json_schema"):  # a class of Pydantic
        schema = schema.model_json_schema()
    if not isinstance(schema, dict):
        raise TypeError(
            "`schema` must be a JSON schema as a dictionary, or a Pydantic model. "
            f"Received: {schema!r}."
        )
    try:
        return "%json " + json.dumps({"x-guidance": _LAYOUT, **schema})
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"`schema` isn't JSON: {error}.") from error


def _from_regex(regex):
    import llguidance

    if not isinstance(regex, str) or not regex:
        raise TypeError(
            "`regex` must be a regular expression that isn't empty. Received: "
            f"{regex!r}."
        )
    return f"/{llguidance.regex_to_lark(regex, '')}/"


def choices_to_regex(choices: Sequence[str]) -> str:
    """A regular expression of a choice between texts.

    Args:
        choices: The texts.

    Raises:
        TypeError: They are no texts, or one is empty.
    """
    is_list = isinstance(choices, Sequence) and not isinstance(choices, str)
    if not is_list or not choices or not all(isinstance(c, str) and c for c in choices):
        raise TypeError(
            "`choices` must be a list of texts that aren't empty. Received: "
            f"{choices!r}."
        )
    return "|".join(map(re.escape, choices))


def _from_tools(tools):
    return " | ".join(
        f"{json.dumps(before)} {_from_schema(schema)} {json.dumps(behind)}"
        for before, schema, behind in tools
    )


_MAKERS = {
    "schema": _from_schema,
    "regex": _from_regex,
    "choices": lambda choices: _from_regex(choices_to_regex(choices)),
    "tools": _from_tools,
}
