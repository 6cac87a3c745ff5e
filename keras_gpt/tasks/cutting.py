"""Where a long text is cut: at paragraphs, sentences or words, by counts of tokens.

What an exported model does by TensorFlow operations, part by part the same.
"""

import re
from collections.abc import Callable

WIDE_ENDS = "\u3002\uff01\uff1f"  # of sentences that no space follows
# white space and the word behind it
_WORD = re.compile(rf"\s*[^\s{WIDE_ENDS}]*[{WIDE_ENDS}]?")
ENDS_OF_SENTENCES = (*".!?", *WIDE_ENDS)
ANYWHERE = 4


def cut(text: str, count: Callable[[list[str]], list[int]], most: int) -> list[str]:
    """Cut a text into parts of so many tokens; joined they are the text.

    Each part is as long as may be and ends before an empty line, else a line's end,
    a sentence's or a word's.

    Args:
        text: The text.
        count: Numbers of tokens of texts, each encoded alone. A part's number is the
            sum over its words, with the white space before them.
        most: Most tokens of a part.

    Raises:
        ValueError: Not even a character fits.
    """
    pieces, counts, levels = [], [], []
    words = [word for word in _WORD.findall(text) if word]
    for word, before, size in zip(words, ["", *words], count(words), strict=False):
        levels.append(_level(before, word))
        if size <= most:
            pieces.append(word)
            counts.append(size)
            continue
        pieces += word
        counts += count(list(word))
        levels += [ANYWHERE] * (len(word) - 1)
    if most < max(counts, default=1) or most < 1:
        raise ValueError(
            "Not even one character fits beside the instruction and the answer. Lower "
            "max_new_tokens."
        )
    parts, start, end, size = [], 0, 0, 0
    while end < len(pieces):
        if size + counts[end] <= most:
            size += counts[end]
            end += 1
            continue
        # the best boundary, of those the latest
        place = min(range(start + 1, end + 1), key=lambda p: (levels[p], -p))
        parts.append("".join(pieces[start:place]))
        start, size = place, sum(counts[place:end])
    return [*parts, "".join(pieces[start:])]


def _level(before: str, word: str) -> int:
    """How good a boundary is between two words, from 0, the best."""
    if "\n" in word:
        return 0 if word.count("\n") > 1 else 1
    if before.endswith(ENDS_OF_SENTENCES):
        return 2
    return 3 if word[0].isspace() else ANYWHERE
