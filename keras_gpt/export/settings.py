"""What is fixed when a model is exported, checked."""

import dataclasses
import itertools
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

from keras_gpt.config import check_choice, suggest
from keras_gpt.controls import CONTROLS, MOST_NEW_TOKENS, check_control
from keras_gpt.export.chat_layout import ChatLayout, learn_layout
from keras_gpt.export.form_table import FormTable, make_table
from keras_gpt.generation.rows import check_stop_ids
from keras_gpt.language_model.completion import find_room
from keras_gpt.tasks.answering import share_context
from keras_gpt.tasks.prompts import LANGUAGES, ask, find_languages
from keras_gpt.tokenizers import encode_chat

# What each row of a request chooses; other controls are fixed by the export
ROW_CONTROLS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
LIMIT = 2**30  # a control beyond it is as this, which int32 and float32 hold
WEIGHTS = ("float32", "bfloat16", "int8")
FLAVOURS = ("stock", "xla")
TASKS = ("chat", "summarize", "translate", "generate")
OWN = -1  # in place of a control, for the model's own


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is fixed when a model is exported; `check` makes it from what callers give.

    Attributes:
        default: The task of `serving_default`.
        tasks: Names of all tasks that have a signature.
        layout: What the chat template writes around messages, if there is one.
        languages: Pairs of languages that `translate` knows.
        part_tokens: By task and pair of languages, most tokens of a part of a text.
        message_tokens: Most tokens of a message, beside what the template writes.
        max_new_tokens: Most new tokens of an answer.
        max_prompt_tokens: Longest prompt.
        stop_ids: Token ids that end a text.
        temperature: For requests that choose none, as are the next three.
        top_k: As in `CONTROLS`, without `None`, as are the others.
        top_p: As above.
        seed: The same for each row.
        min_p: For every request.
        repetition_penalty: For every request.
        weights: What the weights are stored in; `None` for what the model has.
        flavour: `"stock"`, or `"xla"` for servers that may compile.
        batch_sizes: Numbers of rows that the server is warmed up with.
        adapters: By the name of each adapter, which rows choose, its `stop_ids`.
        form: What answers are, or `None` for anything.
    """

    default: str
    tasks: tuple[str, ...]
    layout: ChatLayout | None
    languages: tuple[tuple[str, str], ...]
    part_tokens: dict[str, list[int]]
    message_tokens: int
    max_new_tokens: int
    max_prompt_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    min_p: float
    repetition_penalty: float
    weights: str | None
    flavour: str
    batch_sizes: tuple[int, ...]
    adapters: dict[str, tuple[int, ...]]
    form: FormTable | None

    @classmethod
    def check(
        cls,
        lm: Any,
        *,
        default: str | None,
        max_new_tokens: int,
        max_prompt_tokens: int | None,
        stop_ids: Sequence[int] | None,
        weights: str | None,
        flavour: str,
        batch_sizes: Sequence[int],
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        **defaults,
    ) -> Self:
        """Check everything; see `LanguageModel.export` for the arguments."""
        if lm.adapter is not None:
            raise ValueError(
                "Each row of a request chooses its adapter. Export the model that has "
                f"all, not the one of with_adapter({lm.adapter!r})."
            )
        config = lm.model.config
        names = [name for name in CONTROLS if name != "max_new_tokens"]
        given = {name: CONTROLS[name].default for name in names}
        given |= lm.generation_defaults | defaults
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise TypeError(
                f"Unknown control. {suggest('control', unknown[0], CONTROLS)}"
            )
        if max_prompt_tokens is None:
            max_prompt_tokens = config.context_length
        adapters = {
            name: use.get("stop_ids", lm.stop_ids) if stop_ids is None else stop_ids
            for name, use in lm.adapters.items()
        }
        stop_ids = lm.stop_ids if stop_ids is None else stop_ids
        check_stop_ids(stop_ids, config.vocab_size)
        _check_integer("max_new_tokens", max_new_tokens, 1, MOST_NEW_TOKENS)
        _check_integer("max_prompt_tokens", max_prompt_tokens, 1, config.context_length)
        _check_integer("seed", given["seed"], 0, 2**31 - 1)
        for size in batch_sizes:
            _check_integer("batch_sizes", size, 1, 4096)
        if weights is not None:
            check_choice("weights", weights, WEIGHTS)
        check_choice("flavour", flavour, FLAVOURS)
        controls = {name: check_control(name, value) for name, value in given.items()}
        for name in controls.keys() - {"seed"}:
            controls[name] = min(controls[name], LIMIT)
        tasks, layout = _choose_tasks(lm, default)
        if layout is not None:
            _check_templates(lm)
        form = make_table(lm, stop_ids, regex, choices)
        if form is not None:
            _check_has_form(tasks, stop_ids, adapters)
        room = min(max_prompt_tokens, find_room(lm, max_new_tokens))
        if "chat" in tasks:
            room -= _count_around_message(lm, room)
        settings = cls(
            default=default or lm.task,
            tasks=tasks,
            layout=layout,
            languages=_list_languages(lm),
            message_tokens=room,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            stop_ids=tuple(stop_ids),
            weights=weights,
            flavour=flavour,
            batch_sizes=tuple(batch_sizes),
            adapters={name: tuple(ids) for name, ids in adapters.items()},
            part_tokens={},
            form=form,
            **controls,
        )
        for task in settings.pairs:
            if task in tasks:
                settings.part_tokens[task] = _count_part_tokens(lm, settings, task)
        return settings

    @property
    def pairs(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """By task, the pairs of languages in which it asks; an empty one for none."""
        return {"summarize": ((),), "translate": self.languages}

    @property
    def signatures(self) -> tuple[str, ...]:
        """Names of all signatures."""
        more = ("chat_with_controls",) if "chat" in self.tasks else ()
        return (
            "serving_default",
            *self.tasks,
            *more,
            "generate_ids",
            "score",
            "tokenize",
        )


def _check_has_form(tasks, stop_ids, adapters):
    """Refuse a form where not all answers can have it."""
    if {"summarize", "translate"} & {*tasks}:
        raise ValueError(
            "Summaries and translations have no form. Received: a model of the "
            f"tasks {', '.join(tasks)}. Leave `regex` and `choices` out."
        )
    others = [name for name, ids in adapters.items() if {*ids} != {*stop_ids}]
    if others:
        raise ValueError(
            f"Answers of a form end with the same ids. The adapters {', '.join(others)}"
            " have others: give `stop_ids`, or leave `regex` and `choices` out."
        )


def _list_languages(lm):
    """The pairs of languages, source and target, that a model is asked to translate."""
    noted = lm.tasks.get("translate", {}).get("languages")
    if noted is None:
        return tuple(itertools.permutations(LANGUAGES, 2))
    return tuple(map(tuple, noted))


def _choose_tasks(lm, default):
    """The tasks that have signatures, and the layout of the chat template."""
    if default is not None:
        check_choice("default", default, TASKS)
    layout = None
    if lm.chat_template is not None:
        try:
            layout = learn_layout(lm.chat_template)
        except ValueError:
            if default != "generate":
                raise
            return ("generate",), None
    able = {"generate", *lm.tasks} - {"chat"} if layout is None else set(TASKS)
    if default is not None and default not in able:
        raise ValueError(
            f"The model can't {default}: it was neither tuned for it nor has it a chat "
            f"template. Received: default={default!r}."
        )
    wanted = {"generate", "chat", *lm.tasks, default or lm.task} & able
    return tuple(task for task in TASKS if task in wanted), layout


def _check_templates(lm):
    """Refuse adapters that are asked in another form than the base."""
    for name, use in lm.adapters.items():
        if use.get("chat_template", lm.chat_template) != lm.chat_template:
            raise ValueError(
                f"The adapter {name!r} was tuned with another chat template than the "
                "base has, and an export has one. Export it alone: load it with "
                "lm.load_adapter(directory), and merge it with lm.merge_adapter()."
            )


def _count_around_message(lm, room):
    """Tokens of template and instruction around a message, which must leave room."""
    messages = ask(lm, "complete", "", {})
    count = len(encode_chat(lm.chat_template, lm.tokenizer, messages, LIMIT))
    if count >= room:
        raise ValueError(
            "There is no room for a message: the chat template takes "
            f"{count} tokens, and prompts have {room} at most. Lower `max_new_tokens` "
            "or raise `max_prompt_tokens`."
        )
    return count


def name_languages(pair: tuple[str, ...]) -> dict[str, str]:
    """The names of a pair of languages, for a prompt."""
    fields = ("source_language", "target_language")
    return find_languages(dict(zip(fields, pair, strict=True))) if pair else {}


def _count_part_tokens(lm, settings, task):
    """Most tokens of a part of a text that is summarized or translated, by pair."""
    most = [
        share_context(lm, task, settings.max_new_tokens, name_languages(pair))[1]
        for pair in settings.pairs[task]
    ]
    if min(most) < 1:
        raise ValueError(
            f"There is no room to {task}: a context of "
            f"{lm.model.config.context_length} tokens can't hold the instruction, a "
            "text and an answer. Lower `max_new_tokens`. Received: max_new_tokens="
            f"{settings.max_new_tokens}."
        )
    return most


def _check_integer(name, value, least, most):
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not (is_integer and least <= value <= most):
        raise ValueError(
            f"`{name}` must be an integer of at least {least} and at most {most}. "
            f"Received: {name}={value!r}."
        )
