"""From new token ids to text, piece by piece."""

import codecs
from collections.abc import Sequence


class TextAssembler:
    """Text that grows by token ids and ends at a stop string.

    A piece never ends inside a UTF-8 character, and never holds the beginning of
    what may turn out to be a stop string.

    Args:
        tokenizer: Has `decode_bytes(ids, skip_special_tokens=True)` and `vocab_size`.
        stop: Strings that end the text; they are not part of it.

    Attributes:
        stopped: Whether a stop string came.
        text: All that `add` and `finish` returned.
    """

    def __init__(self, tokenizer, stop: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False
        self.text = ""

    def add(self, ids: Sequence[int]) -> str:
        """Take new ids; return the text that is certain."""
        # a pretrained model's vocabulary may be padded with ids that mean nothing
        ids = [i for i in ids if i < self._tokenizer.vocab_size]
        new = self._tokenizer.decode_bytes(ids, skip_special_tokens=True)
        return self._emit(self._decoder.decode(new), is_last=False)

    def finish(self) -> str:
        """Return what was held back, when no more ids come."""
        return self._emit(self._decoder.decode(b"", final=True), is_last=True)

    def _emit(self, new, is_last):
        if self.stopped:
            return ""
        held = self._held + new
        found = [(held.find(stop), stop) for stop in self._stop if stop in held]
        if found:
            self.stopped = True
            # the one that ends first, as if the text had come character by character
            start = min((start + len(stop), start) for start, stop in found)[1]
            piece, self._held = held[:start], ""
        else:
            cut = len(held) if is_last else len(held) - self._possible_stop(held)
            piece, self._held = held[:cut], held[cut:]
        self.text += piece
        return piece

    def _possible_stop(self, text):
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
