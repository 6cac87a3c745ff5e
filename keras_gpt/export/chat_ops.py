"""Conversations to token ids as TensorFlow operations, as `encode_chat` gives them.

What a chat template writes around messages is in tables, its special tokens as ids
already; text in the messages is ordinary text, whatever it spells.
"""

# Axes: b conversation, m message, j literal (one before each message and one behind the
# last), s stretch of ordinary text between special tokens, t token

import numpy as np
import tensorflow as tf

from keras_gpt.export.chat_layout import (
    CHANGES,
    EDGE,
    ROLES,
    THOUGHT,
    THOUGHT_END,
    ChatLayout,
)
from keras_gpt.export.checks import check
from keras_gpt.export.text_ops import TextEncoder, replace_invalid
from keras_gpt.tokenizers import Tokenizer

_SYSTEM, _USER = ROLES.index("system"), ROLES.index("user")
_NONE = -1  # the role of a place without message
_STRINGS = tf.TensorSpec([None, None], tf.string)
_NUMBERS = tf.TensorSpec([None, None], tf.int32)


class ChatEncoder(tf.Module):
    """Conversations to padded token ids, ready for the answer.

    Args:
        layout: What the chat template writes around messages.
        tokenizer: The model's.
        encode: The tokenizer as operations.

    Raises:
        ValueError: The tokenizer encodes text otherwise where it stands beside a
            special token.
    """

    def __init__(self, layout: ChatLayout, tokenizer: Tokenizer, encode: TextEncoder):
        super().__init__()
        self.layout = layout
        self.encode = encode
        texts = sorted(set(layout.literals.values()))
        _check_parts(tokenizer, texts)
        parts = [tokenizer.split_special(text) for text in texts]
        self.patterns = {
            role: [
                pattern
                for pattern in CHANGES[layout.changes[role]]
                # a template doesn't see special tokens that a message spells
                if THOUGHT not in pattern or THOUGHT_END not in tokenizer.special_tokens
            ]
            for role in ROLES
        }
        numbers = np.full([EDGE + 1, EDGE + 1, 2, 2, 2], -1, "int32")
        for key, text in layout.literals.items():
            numbers[tuple(map(int, key))] = texts.index(text)
        with tf.device("CPU:0"):
            self.roles = tf.constant(ROLES)
            self.numbers = tf.constant(numbers)
            # a literal without special token is all in its first part
            self.firsts = tf.constant([part[0] for part in parts])
            self.lasts = tf.constant([p[-1] if len(p) > 1 else "" for p in parts])
            self.is_break = tf.constant([len(part) > 1 for part in parts])
            # what stands at the break; the last is for none
            ids = [_encode_between(tokenizer, part) for part in parts]
            self.break_ids = tf.ragged.constant([*ids, []], tf.int32, ragged_rank=1)

    # one graph, which all signatures call
    @tf.function(
        input_signature=[_STRINGS, _STRINGS, tf.TensorSpec([None], tf.int32)],
        autograph=False,
    )
    def __call__(
        self, roles: tf.Tensor, contents: tf.Tensor, room: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Encode each conversation.

        Where one has no room, the oldest messages are left out as by `encode_chat`.

        Args:
            roles: Strings `(b, m)`; those of a row end in an empty one, and what is
                behind it doesn't count.
            contents: Strings `(b, m)`.
            room: Most ids of each, int32 `(b,)`.

        Returns:
            The ids, int32 `(b, t)`, and how many each has, int32 `(b,)`.
        """
        with tf.device("CPU:0"):
            numbers, contents = self._read(roles, contents)
            token_ids, lengths = self._encode_all(numbers, contents)

            def is_shortened(numbers, lengths):
                return (lengths > room) & (_find_next_question(numbers) > 0)

            def goes_on(numbers, contents, token_ids, lengths):
                del contents, token_ids
                return tf.reduce_any(is_shortened(numbers, lengths))

            def shorten(numbers, contents, token_ids, lengths):
                del token_ids
                left_out = tf.where(
                    is_shortened(numbers, lengths),
                    _find_next_question(numbers) - _count_systems(numbers),
                    0,
                )
                numbers, contents = _leave_out(numbers, contents, left_out)
                return numbers, contents, *self._encode_all(numbers, contents)

            state = (numbers, contents, token_ids, lengths)
            unknown = tf.TensorShape([None, None])
            shapes = (unknown, unknown, unknown, tf.TensorShape([None]))
            *_, token_ids, lengths = tf.while_loop(goes_on, shorten, state, shapes)
            token_ids = check(
                lengths <= room,
                token_ids,
                "The last message is too long: shown are each row's tokens with the "
                "template and the room for them",
                tf.stack([lengths, tf.zeros_like(lengths) + room], axis=1),
            )
            return token_ids, lengths

    def _read(self, roles, contents):
        """Numbers of roles, and contents, checked and in the order of messages."""
        sizes = tf.stack([tf.shape(roles), tf.shape(contents)])
        is_alike = tf.reduce_all(sizes[0] == sizes[1]) & (sizes[0, 0] > 0)
        roles = check(
            is_alike,
            roles,
            "`roles` and `contents` must both be (conversations, messages)",
            sizes,
        )
        # what is behind the first empty one doesn't count: a server that batches fills
        # rows up with the first value of a request
        is_end = roles == ""
        is_message = tf.cumsum(tf.cast(is_end, tf.int32), axis=1) == 0
        is_known = tf.reduce_any(roles[..., None] == self.roles, axis=-1)
        roles = check(
            (is_known | ~is_message)
            & tf.reduce_any(is_end & ~is_end[:, :1], 1)[:, None],
            roles,
            f"`roles` must be {', '.join(ROLES)} for each message, and end in an empty "
            "one behind the last",
        )
        counts = tf.reduce_sum(tf.cast(is_message, tf.int32), axis=1)
        matches = tf.cast(roles[..., None] == self.roles, tf.int32)
        numbers = tf.where(is_message, tf.argmax(matches, -1, tf.int32), _NONE)
        contents = replace_invalid(tf.where(is_message, contents, ""))
        if self.layout.drops_empty_system:
            is_empty = (numbers[:, 0] == _SYSTEM) & (contents[:, 0] == "")
            # a system message alone stays, and is refused
            is_dropped = is_empty & (counts > 1)
            numbers, contents = _leave_out(
                numbers, contents, tf.cast(is_dropped, tf.int32), keep_system=False
            )
        for number, role in enumerate(ROLES):
            changed = contents
            for pattern in self.patterns[role]:
                changed = tf.strings.regex_replace(changed, pattern, "")
            contents = tf.where(numbers == number, changed, contents)
        return numbers, contents

    @tf.function(input_signature=[_NUMBERS, _STRINGS], autograph=False)
    def _encode_all(self, numbers, contents):
        """Ids `(b, t)` and lengths of conversations, however long."""
        b, m = tf.unstack(tf.shape(numbers))
        counts = _count(numbers)
        has_system = numbers[:, 0] == _SYSTEM
        if self.layout.moves_system:
            order = _move_before_last(counts, has_system, m)
            numbers = tf.gather(numbers, order, batch_dims=1)
            contents = tf.gather(contents, order, batch_dims=1)
        literals = self._find_literals(numbers, counts, has_system)
        is_there = literals >= 0
        literals = tf.maximum(literals, 0)
        is_break = tf.gather(self.is_break, literals) & is_there
        texts = tf.stack(
            [
                tf.where(is_there, tf.gather(self.firsts, literals), ""),
                tf.where(is_there, tf.gather(self.lasts, literals), ""),
                tf.concat([contents, tf.fill([b, 1], "")], axis=1),
            ],
            axis=2,
        )  # (b, j, 3)
        # the second and third of each literal stand behind its break
        behind = tf.cumsum(tf.cast(is_break, tf.int32), axis=1)
        before = behind - tf.cast(is_break, tf.int32)
        row = tf.range(b)[:, None] * (m + 2)
        stretches = tf.stack([before, behind, behind], axis=2) + row[..., None]
        joined = tf.strings.unsorted_segment_join(
            tf.reshape(texts, [-1]), tf.reshape(stretches, [-1]), b * (m + 2)
        )
        # each stretch with the special tokens behind it
        none = self.break_ids.nrows(tf.int32) - 1
        places = tf.boolean_mask(before + row, is_break)[:, None]
        breaks = tf.tensor_scatter_nd_update(
            tf.fill([b * (m + 2)], none), places, tf.boolean_mask(literals, is_break)
        )
        pieces = [self.encode.ragged(joined), tf.gather(self.break_ids, breaks)]
        ids = tf.RaggedTensor.from_uniform_row_length(
            tf.concat(pieces, axis=1), tf.cast(m + 2, tf.int64), tf.cast(b, tf.int64)
        ).merge_dims(1, 2)
        return ids.to_tensor(0), tf.cast(ids.row_lengths(), tf.int32)

    def _find_literals(self, numbers, counts, has_system):
        """Numbers of literals `(b, j)`, -1 behind the last."""
        b, m = tf.unstack(tf.shape(numbers))
        edge = tf.fill([b, 1], EDGE)
        roles = tf.where(numbers == _NONE, EDGE, numbers)
        j = tf.range(m + 1)
        keys = [
            tf.concat([edge, roles], axis=1),
            tf.concat([roles, edge], axis=1),
            tf.cast(has_system, tf.int32)[:, None] + tf.zeros_like(j),
            tf.cast(j == 1, tf.int32) + tf.zeros([b, 1], tf.int32),
            tf.cast(j == counts[:, None] - 1, tf.int32),
        ]
        literals = tf.gather_nd(self.numbers, tf.stack(keys, axis=2))
        is_there = j <= counts[:, None]
        names = tf.where(numbers == _NONE, "", tf.gather(self.roles, roles % EDGE))
        literals = check(
            (literals >= 0) | ~is_there,
            literals,
            "The chat template doesn't write messages with roles in this order",
            names,
        )
        return tf.where(is_there, literals, -1)


def _encode_between(tokenizer, parts):
    """Ids from the first special token to the last."""
    ids = []
    for part in parts[1:-1]:
        ids += tokenizer.encode(part) if isinstance(part, str) else [part]
    return ids


def _check_parts(tokenizer, texts):
    """Refuse tokenizers whose ids aren't those of the parts between special tokens."""
    for text in texts:
        whole = tokenizer.encode(text + text, allow_special=True)
        parts = tokenizer.split_special(text + text)
        if whole != _encode_between(tokenizer, [None, *parts, None]):
            raise ValueError(
                "The chat template can't be exported: beside a special token the "
                "tokenizer encodes text otherwise than alone. Export with "
                "default='generate' (--default generate)."
            )


def _count(numbers):
    return tf.reduce_sum(tf.cast(numbers != _NONE, tf.int32), axis=1)


def _find_next_question(numbers):
    """The place of the user's second message or later `(b,)`, 0 where there is none."""
    place = tf.range(tf.shape(numbers)[1])
    is_first = place <= _count_systems(numbers)[:, None]
    return tf.argmax((numbers == _USER) & ~is_first, axis=1, output_type=tf.int32)


def _count_systems(numbers):
    """1 where a system message is first."""
    return tf.cast(numbers[:, 0] == _SYSTEM, tf.int32)


def _leave_out(numbers, contents, count, keep_system=True):
    """Leave out so many messages `(b,)` from the first on, or from that behind it."""
    m = tf.shape(numbers)[1]
    kept = _count_systems(numbers)[:, None] if keep_system else 0
    place = tf.range(m) + tf.where(tf.range(m) >= kept, count[:, None], 0)
    is_inside = place < m
    place = tf.minimum(place, m - 1)
    return (
        tf.where(is_inside, tf.gather(numbers, place, batch_dims=1), _NONE),
        tf.where(is_inside, tf.gather(contents, place, batch_dims=1), ""),
    )


def _move_before_last(counts, has_system, m):
    """Where each message `(b, m)` comes from if the system message is last but one."""
    place = tf.range(m)
    target = counts[:, None] - 2
    is_moved = (has_system & (counts > 1))[:, None]
    moved = tf.where(place < target, place + 1, tf.where(place == target, 0, place))
    return tf.where(is_moved, moved, place)
