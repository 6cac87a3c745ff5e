"""Summaries and translations as TensorFlow operations, as `keras_gpt.tasks` makes them.

Long texts are cut by the rule of `keras_gpt.tasks.cutting`, step by step the same.
"""

# Axes: b text, c character, w word, p piece (a word, or a character of one that is too
# long) of all texts one after another; n piece of one text; q question

from collections.abc import Callable

import tensorflow as tf

from keras_gpt.export.chat_layout import SPACES, TRIM
from keras_gpt.export.checks import check
from keras_gpt.export.settings import name_languages
from keras_gpt.export.text_ops import TextEncoder, replace_invalid
from keras_gpt.tasks.cutting import ANYWHERE, ENDS_OF_SENTENCES, WIDE_ENDS
from keras_gpt.tasks.prompts import TASKS, ask

_AT_ONCE = 8  # questions, as many as `keras_gpt.tasks` asks at once
_MARK = "\ufdd0"  # stands for the text while the words around it are looked for


class TaskAnswers(tf.Module):
    """Answers to texts in the form of a task, `"summarize"` or `"translate"`.

    Args:
        lm: A `LanguageModel`.
        name: The task.
        settings: The `Settings` of the export.
        encode: The tokenizer as operations.
        encode_prompts: Gives token ids `(q, t)` and their numbers `(q,)` of prompts
            `(q,)`, with what stands around them.
        answer: Gives what the model writes, `(q,)`, behind token ids `(q, t)` of
            `lengths` `(q,)`.
    """

    def __init__(
        self,
        lm,
        name: str,
        settings,
        encode: TextEncoder,
        encode_prompts: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
        answer: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    ):
        super().__init__()
        self.task = name
        self.pairs = settings.pairs[name]
        self.encode, self.encode_prompts, self.answer = encode, encode_prompts, answer
        frames = [find_frame(lm, name, pair) for pair in self.pairs]
        with tf.device("CPU:0"):
            self.before = tf.constant([frame[0] for frame in frames])
            self.behind = tf.constant([frame[1] for frame in frames])
            self.most = tf.constant(settings.part_tokens[name])

    def summarize(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Summarize texts, strings `(b,)`.

        Returns:
            The summaries, and into how many parts each text was cut, int32 `(b,)`.
        """
        texts = replace_invalid(texts)
        kind = tf.zeros_like(tf.strings.length(texts))

        def is_any_left(texts, is_left, num_parts):
            del texts, num_parts
            return tf.reduce_any(is_left)

        def shorten(texts, is_left, num_parts):
            rows = tf.where(is_left)
            given = tf.boolean_mask(texts, is_left)
            parts, answers = self._answer_parts(given, tf.boolean_mask(kind, is_left))
            joined = tf.strings.reduce_join(answers, axis=1, separator="\n")
            counts = _count_parts(parts)
            is_again = counts > 1
            is_again &= _count_characters(joined) < _count_characters(given)
            return (
                tf.tensor_scatter_nd_update(texts, rows, joined),
                tf.tensor_scatter_nd_update(is_left, rows, is_again),
                tf.tensor_scatter_nd_max(num_parts, rows, counts),
            )

        state = (texts, tf.fill(tf.shape(texts), True), kind)
        texts, _, num_parts = tf.while_loop(is_any_left, shorten, state)
        return texts, num_parts

    def translate(
        self, texts: tf.Tensor, source: tf.Tensor, target: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Translate texts; all arguments are strings `(b,)`.

        Returns:
            The translations, and into how many parts each text was cut, int32 `(b,)`.
        """
        parts, answers = self._answer_parts(
            replace_invalid(texts), self._find_pairs(source, target)
        )
        inner = parts.flat_values
        # each part keeps the white space around it
        pieces = tf.strings.join(
            [
                tf.strings.regex_replace(inner, f"(?s)^([{SPACES}]*).*$", r"\1"),
                answers.flat_values,
                tf.strings.regex_replace(inner, f"(?s)^.*?([{SPACES}]*)$", r"\1"),
            ]
        )
        is_empty = tf.strings.regex_replace(inner, TRIM, "") == ""
        pieces = parts.with_flat_values(tf.where(is_empty, inner, pieces))
        return tf.strings.reduce_join(pieces, axis=1), _count_parts(parts)

    def _find_pairs(self, source, target):
        """Numbers of pairs of languages, checked."""
        sources, targets = zip(*self.pairs, strict=True)
        is_pair = (source[:, None] == sources) & (target[:, None] == targets)
        known = ", ".join(f"{a} to {b}" for a, b in self.pairs[:8])
        more = ", ..." if len(self.pairs) > 8 else ""
        return check(
            tf.reduce_any(is_pair, axis=1),
            tf.argmax(tf.cast(is_pair, tf.int32), 1, tf.int32),
            f"`source` and `target` must be a pair of languages: {known}{more}",
            tf.stack([source, target], axis=1),
        )

    def _answer_parts(self, texts, kind):
        """The parts of texts, and what is written about each, ragged `(b, None)`."""
        parts = cut_texts(texts, tf.gather(self.most, kind), self.encode)
        questions = parts.flat_values
        kinds = tf.gather(kind, parts.value_rowids())
        num_questions = tf.shape(questions)[0]

        def goes_on(place, answers):
            del answers
            return place < num_questions

        def ask_some(place, answers):
            some = slice(place, place + _AT_ONCE)
            token_ids, lengths = self._encode_questions(questions[some], kinds[some])
            found = self.answer(token_ids, lengths)
            found = tf.strings.regex_replace(found, TRIM, "")
            return place + _AT_ONCE, tf.concat([answers, found], axis=0)

        _, answers = tf.while_loop(
            goes_on,
            ask_some,
            (tf.constant(0), tf.zeros([0], tf.string)),
            (tf.TensorShape([]), tf.TensorShape([None])),
        )
        return parts, parts.with_flat_values(answers)

    def _encode_questions(self, questions, kind):
        if self.task == "translate":
            questions = tf.strings.regex_replace(questions, TRIM, "")
        return self.encode_prompts(
            tf.strings.join(
                [tf.gather(self.before, kind), questions, tf.gather(self.behind, kind)]
            )
        )


def as_messages(texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Roles and contents of conversations that are one message `(b,)` of the user."""
    end = tf.zeros_like(texts)
    roles = tf.stack([tf.fill(tf.shape(texts), "user"), end], axis=1)
    return roles, tf.stack([texts, end], axis=1)


def find_frame(lm, name: str, pair: tuple[str, ...] = ()) -> tuple[str, str]:
    """What stands before a text and behind it in the prompt of a task.

    Args:
        lm: The `LanguageModel`.
        name: The task.
        pair: Codes of the two languages of a translation.
    """
    languages = name_languages(pair)
    if lm.chat_template is None:
        prompt = TASKS[name].plain.format(question=_MARK, **languages)
    else:
        [message] = ask(lm, name, _MARK, languages)
        prompt = message["content"]
    before, behind = prompt.split(_MARK)
    return before, behind


def _count_parts(parts):
    return tf.cast(parts.row_lengths(), tf.int32)


def _count_characters(texts):
    return tf.strings.length(texts, unit="UTF8_CHAR")


def cut_texts(
    texts: tf.Tensor, most: tf.Tensor, encode: TextEncoder
) -> tf.RaggedTensor:
    """Cut texts into parts as `keras_gpt.tasks.cutting.cut` does.

    Args:
        texts: Strings `(b,)` of valid UTF-8.
        most: Most tokens of a part, int32 `(b,)`.
        encode: The tokenizer as operations.

    Returns:
        The parts, ragged strings `(b, None)`, at least one of each text.
    """
    with tf.device("CPU:0"):
        characters = tf.strings.unicode_split(texts, "UTF-8")  # (b, None)
        codes = tf.strings.unicode_decode(texts, "UTF-8").flat_values  # (c,)
        rows = characters.value_rowids()
        is_first = rows != tf.concat([[-1], rows], axis=0)[:-1]
        before = tf.where(is_first, -1, tf.concat([[-1], codes], axis=0)[:-1])
        is_space = _is_one_of(codes, SPACES)
        starts = is_space & ~_is_one_of(before, SPACES)
        starts |= is_first | _is_one_of(before, WIDE_ENDS)
        word = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        num_words = tf.reduce_sum(tf.cast(starts, tf.int32))
        levels = _find_levels(codes, before, is_space, starts, word, num_words)
        # words that are too long become characters
        letters = characters.flat_values
        counts = _count_tokens(encode, letters, word, num_words)
        starts |= tf.gather(counts, word) > tf.gather(most, rows)
        piece = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        num_pieces = tf.reduce_sum(tf.cast(starts, tf.int32))
        counts = _count_tokens(encode, letters, piece, num_pieces)
        rows, levels = tf.boolean_mask(rows, starts), tf.boolean_mask(levels, starts)
        counts = check(
            (counts <= tf.gather(most, rows)) & tf.reduce_all(most > 0),
            counts,
            "Not even one character fits beside the instruction and the answer: export "
            "with lower `max_new_tokens`. Tokens of characters and the room",
            tf.concat([counts, most], axis=0),
        )
        starts = tf.gather(_find_starts(counts, levels, rows, most), piece) & starts
        part = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        num_parts = tf.reduce_sum(tf.cast(starts, tf.int32))
        parts = tf.RaggedTensor.from_value_rowids(
            tf.strings.unsorted_segment_join(letters, part, num_parts),
            tf.boolean_mask(characters.value_rowids(), starts),
            nrows=tf.shape(texts, tf.int64)[0],
        )
        is_empty = tf.cast(parts.row_lengths() == 0, tf.int64)
        empty = tf.RaggedTensor.from_row_lengths(
            tf.fill([tf.reduce_sum(is_empty)], ""), is_empty
        )
        return tf.concat([parts, empty], axis=1)


def _is_one_of(codes, characters):
    return tf.reduce_any(codes[:, None] == [ord(c) for c in characters], axis=1)


def _find_levels(codes, before, is_space, starts, word, num_words):
    """How good a boundary before each character is `(c,)`, 0 the best."""
    is_line = tf.cast(codes == ord("\n"), tf.int32)
    lines = tf.gather(tf.math.unsorted_segment_sum(is_line, word, num_words), word)
    levels = tf.where(is_space, 3, ANYWHERE)
    levels = tf.where(_is_one_of(before, ENDS_OF_SENTENCES), 2, levels)
    levels = tf.where(lines > 0, 2 - tf.minimum(lines, 2), levels)
    return tf.where(starts, levels, ANYWHERE)


def _count_tokens(encode, letters, segments, num_segments):
    texts = tf.strings.unsorted_segment_join(letters, segments, num_segments)
    return tf.cast(encode.ragged(texts).row_lengths(), tf.int32)


def _find_starts(counts, levels, rows, most):
    """Whether a part begins with each piece `(p,)`."""
    b = tf.shape(most, tf.int64)[0]
    sizes = tf.RaggedTensor.from_value_rowids(counts, rows, nrows=b)
    ends = tf.cast(sizes.row_lengths(), tf.int32)  # (b,)
    levels = sizes.with_flat_values(levels).to_tensor(ANYWHERE)
    sizes = sizes.to_tensor(0)  # (b, n)
    n = tf.shape(sizes)[1]
    place = tf.range(n)

    def goes_on(start, starts):
        del starts
        return tf.reduce_any(start < ends)

    def find_next(start, starts):
        is_behind = place >= start[:, None]
        total = tf.cumsum(tf.where(is_behind, sizes, 0), axis=1)
        is_fitting = is_behind & (total <= most[:, None]) & (place < ends[:, None])
        end = start + tf.reduce_sum(tf.cast(is_fitting, tf.int32), axis=1)
        is_possible = (place > start[:, None]) & (place <= end[:, None])
        # the best boundary, of those the latest
        costs = tf.where(is_possible, levels * n - place, (ANYWHERE + 1) * n)
        best = tf.argmin(costs, axis=1, output_type=tf.int32)
        start = tf.where(end >= ends, ends, best)
        return start, starts | (place == start[:, None])

    first = tf.zeros_like(ends)
    starts = place == first[:, None]
    _, starts = tf.while_loop(goes_on, find_next, (first, starts))
    return tf.boolean_mask(starts, place < ends[:, None])
