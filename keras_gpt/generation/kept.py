"""`KeptTexts`: what was read of texts, for prompts that begin alike."""

import numpy as np


class KeptTexts:
    """Caches of single rows, of which those that were used last are kept.

    Args:
        most_tokens: How many tokens all of them together have room for.
    """

    def __init__(self, most_tokens: int):
        self.most_tokens = most_tokens
        # (ids, layers, adapter), the one that was used last behind the others
        self._texts = []

    def find(self, ids: list[int], adapter: int) -> tuple[int, tuple | None]:
        """The text that shares the longest beginning with `ids`.

        Args:
            ids: What is about to be read.
            adapter: The number of the adapter with which it is, and was, read.

        Returns:
            How many tokens they share, and the layers of its cache, which are to be
            read alone; 0 and `None` where there are none.
        """
        shared = [
            count_shared(ids, text) if other == adapter else 0
            for text, _, other in self._texts
        ]
        if not shared or max(shared) == 0:
            return 0, None
        found = self._texts.pop(int(np.argmax(shared)))
        self._texts.append(found)
        return max(shared), found[1]

    def add(self, ids: list[int], layers: tuple, adapter: int) -> None:
        """Keep a text, and no longer those that it begins with.

        Args:
            ids: What the cache holds from its first place on.
            layers: Of the cache; nothing writes into them from now on.
            adapter: The number of the adapter with which the text was read.
        """
        self._texts = [
            (text, kept, other)
            for text, kept, other in self._texts
            if other != adapter or count_shared(ids, text) < len(text)
        ]
        self._texts.append((np.array(ids), layers, adapter))
        while sum(map(_room, self._texts)) > self.most_tokens:
            del self._texts[0]


def count_shared(one, other) -> int:
    """How many ids two texts have in common before they differ."""
    size = min(len(one), len(other))
    differs = np.flatnonzero(np.not_equal(one[:size], other[:size]))
    return int(differs[0]) if len(differs) else size


def _room(text):
    """Tokens that a text's cache has room for."""
    return text[1][0][0].shape[2]
