"""Docstrings as Keras writes them, as sections of Google's style, for the site."""

import re
import textwrap

import griffe

RETURNS = re.compile(r"^Returns:\n((?:    .*\n|\n)*    .*)", re.MULTILINE)
# of an example the lines aren't indented; it ends where the next section begins
EXAMPLE = re.compile(r"^Example:\n\n((?:(?!^[A-Z][\w ]+:$).*\n?)*)", re.MULTILINE)


class KerasSections(griffe.Extension):
    """Names the sections that Google's style doesn't know by those that it does."""

    def on_object(self, *, obj, **kwargs):
        """Change the docstring of what was read."""
        if not obj.docstring:
            return
        text = re.sub(
            r"^Call arguments:$",
            "Other Args: Call arguments",
            obj.docstring.value,
            flags=re.MULTILINE,
        )
        if not (obj.is_function and obj.returns):  # without a type it is just a text
            text = RETURNS.sub(
                lambda match: "**Returns:**\n\n" + textwrap.dedent(match[1]), text
            )
        obj.docstring.value = EXAMPLE.sub(
            lambda match: "Examples:\n" + textwrap.indent(match[1], "    "), text
        )
