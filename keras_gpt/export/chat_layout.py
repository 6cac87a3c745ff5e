"""What a chat template writes around messages, found out by asking it.

A template is a program; a graph needs a table. Messages with marks for contents are
given to the template, and what it writes before, between and behind the marks is noted
by the roles on both sides. Then other conversations are compared with what the template
makes of them: one that isn't a function of roles and contents turn by turn is refused.
"""

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from keras_gpt.tokenizers import ChatTemplate

ROLES = ("system", "user", "assistant")
# What stands beside the first and the last message, in place of a role
EDGE = len(ROLES)
# What Python's `str.strip` takes away, as characters of a regular expression's class
SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))
TRIM = f"^[{SPACES}]+|[{SPACES}]+$"
THOUGHT_END = "</think>"
THOUGHT = f"(?s)^.*{THOUGHT_END}"
# What templates do to a content: regular expressions of what they take away, one after
# the other, written alike for Python and for RE2
CHANGES = {
    "nothing": (),
    "trim": (TRIM,),
    "forget thoughts": (THOUGHT,),
    "forget thoughts and line breaks behind": (THOUGHT + r"\n*",),
    "forget thoughts, then line breaks": (THOUGHT, r"^\n+"),
    "forget thoughts, then trim": (THOUGHT, TRIM),
}
_MARK = "\ufdd0{}\ufdd1"
_PROBES = (
    " a b ",
    "\n\ta\u2003\n",
    "",
    " \n",
    "\n<think>\nwhy\n</think>\n\n so \n",
    "a</think>b</think> c",
    "'a' \"b\" {{ c }} {% d %} <s> [INST] 你好",
)
_REFUSED = (
    "The chat template can't be exported: {}. Export with default='generate' "
    "(--default generate), which leaves out what needs the template, or give the model "
    "a `chat_template` that writes turn by turn."
)


@dataclass
class ChatLayout:
    """What a template writes around messages.

    Attributes:
        literals: By `(role before, role behind, whether there is a system message,
            whether the role before is the first, whether the role behind is the
            last)`, numbers in `ROLES` or `EDGE`: the text between two messages.
        moves_system: Whether the system message stands before the last message
            instead of first.
        drops_empty_system: Whether a system message without content counts as none.
        changes: Of each role, the name in `CHANGES` of what happens to its contents.
    """

    literals: dict[tuple[int, int, bool, bool, bool], str] = field(default_factory=dict)
    moves_system: bool = False
    drops_empty_system: bool = False
    changes: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys(ROLES, "nothing")
    )

    def order(self, roles: Sequence[str]) -> list[int]:
        """Numbers of the messages in the order in which they are written."""
        numbers = list(range(len(roles)))
        if self.moves_system and roles[0] == ROLES[0] and len(roles) > 1:
            numbers.insert(-1, numbers.pop(0))
        return numbers

    def keys(self, roles: Sequence[str]) -> list[tuple[int, int, bool, bool, bool]]:
        """The keys of all texts around messages with these roles, in order."""
        written = [ROLES.index(roles[number]) for number in self.order(roles)]
        pairs = itertools.pairwise([EDGE, *written, EDGE])
        has_system = roles[0] == ROLES[0]
        last = len(roles) - 1
        return [
            (before, behind, has_system, place == 1, place == last)
            for place, (before, behind) in enumerate(pairs)
        ]

    def write(self, roles: Sequence[str], contents: Sequence[str]) -> str | None:
        """Write a conversation, or `None` where the template refuses the roles."""
        if self.drops_empty_system and roles[0] == ROLES[0] and not contents[0]:
            roles, contents = roles[1:], contents[1:]
            if not roles:
                return None
        texts = [self.literals.get(key) for key in self.keys(roles)]
        if None in texts:
            return None
        written = [
            self._change(roles[number], contents[number])
            for number in self.order(roles)
        ]
        return "".join(itertools.chain(*zip(texts, [*written, ""], strict=True)))

    def _change(self, role, content):
        for pattern in CHANGES[self.changes[role]]:
            content = re.sub(pattern, "", content)
        return content


def learn_layout(template: ChatTemplate) -> ChatLayout:
    """Find out what a template writes around messages.

    Args:
        template: The template.

    Returns:
        The layout. It writes conversations of an optional system message and turns
        of user and assistant that end with the user's, and others if they are
        written turn by turn, too.

    Raises:
        ValueError: The template isn't a function of roles and contents turn by turn.
    """
    if _render(template, ["user"], ["Hi"], strftime_now=str) != _render(
        template, ["user"], ["Hi"]
    ):
        raise ValueError(
            _REFUSED.format(
                "it writes today's date, which an export would fix (name a date in its "
                "`special_tokens`, which Llama's templates call date_string)"
            )
        )
    every = [list(r) for n in range(1, 5) for r in itertools.product(ROLES, repeat=n)]
    for shapes in ([*_standard_roles(8), *every], _standard_roles(8)):
        layout = _learn(template, shapes)
        if layout is not None:
            return layout
    raise ValueError(_REFUSED.format(_explain(template)))


def _standard_roles(most):
    """Roles of conversations of up to so many messages, as people have them."""
    turns = [["user", "assistant"] * n + ["user"] for n in range(most // 2)]
    return [[*system, *roles] for roles in turns for system in ([], ["system"])]


def _learn(template, shapes):
    """The layout of these shapes of conversations; `None` if there is none."""
    layout = ChatLayout()
    found = _read(template, ["system", "user", "assistant", "user"])
    layout.moves_system = found is not None and found[0] == [1, 2, 0, 3]
    for roles in shapes:
        found = _read(template, roles)
        if found is None or found[0] != layout.order(roles):
            continue
        for key, text in zip(layout.keys(roles), found[1], strict=True):
            layout.literals.setdefault(key, text)
    without = _render(template, ["user"], ["x"])
    with_empty = _render(template, ["system", "user"], ["", "x"])
    layout.drops_empty_system = without == with_empty
    for role in ROLES:
        layout.changes[role] = _find_change(template, layout, role)
    return layout if _is_right(template, layout, shapes) else None


def _read(template, roles):
    """The order in which contents are written, and the texts around them."""
    marks = [_MARK.format(number) for number in range(len(roles))]
    text = _render(template, roles, marks)
    if text is None:
        return None
    parts = re.split(_MARK.format(r"(\d+)"), text)
    order = [int(number) for number in parts[1::2]]
    # a content that is written twice or not at all
    return (order, parts[::2]) if sorted(order) == list(range(len(roles))) else None


def _find_change(template, layout, role):
    """What the template does to a role's contents, `"nothing"` if it isn't known."""
    roles = ["system", "user", "assistant", "user"]
    if layout.write(roles, [""] * len(roles)) is None:
        roles = roles[1:]
    for name in CHANGES:
        layout.changes[role] = name
        conversations = [
            [text if r == role else "x" for r in roles] for text in _PROBES
        ]
        if all(
            _render(template, roles, contents) == layout.write(roles, contents)
            for contents in conversations
        ):
            return name
    return "nothing"


def _is_right(template, layout, shapes):
    """Whether layout and template agree about these shapes, and a part of them."""
    is_standard = {tuple(roles) for roles in _standard_roles(8)}
    if layout.write(["user"], [""]) is None:
        return False
    choose = random.Random(0).choice
    for roles in shapes:
        for _ in range(3):
            contents = [choose(_PROBES) for _ in roles]
            wanted = _render(template, roles, contents)
            written = layout.write(roles, contents)
            # what the layout refuses must be rare: a content that isn't written
            is_refused = written is None and tuple(roles) not in is_standard
            if wanted != written and not is_refused:
                return False
    return True


def _render(template, roles, contents, **variables):
    """What the template writes, `None` if it refuses."""
    messages = [
        {"role": role, "content": content}
        for role, content in zip(roles, contents, strict=True)
    ]
    try:
        return template.render(messages, **variables)
    except ValueError:
        return None


def _explain(template):
    """Why there is no layout."""
    if _render(template, ["user"], ["Hi"]) is None:
        return "it refuses a message of the user alone"
    if _read(template, ["user"]) is None:
        return "it doesn't write each content once"
    return (
        "what it writes around a message depends on more than the roles beside it, or "
        "it changes contents in a way of its own"
    )
