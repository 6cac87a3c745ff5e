"""SavedModels with the signatures of an export, made of a few ops, for protocol tests.

A token is a Unicode character. What the model "generates" is the prompt reversed in
upper case; when the temperature isn't 0 the controls follow, so that a test sees that
each reached the row that it belongs to. `max_new_tokens` steps of a loop take time.
-1 in place of a control is the toy's own: 12 tokens, temperature 0. A chat is answered
with the roles and what "generate" makes of the last content.
"""

from pathlib import Path

import tensorflow as tf

STRINGS = tf.TensorSpec([None], tf.string)
TABLES = tf.TensorSpec([None, None], tf.string)
INTS = tf.TensorSpec([None], tf.int32)
FLOATS = tf.TensorSpec([None], tf.float32)
ID_ROWS = tf.TensorSpec([None, None], tf.int32)


def tokens_of(texts):
    """Code points `(rows, longest)` padded with -1, and their counts."""
    ragged = tf.strings.unicode_decode(texts, "UTF-8")
    return ragged.to_tensor(-1), tf.cast(ragged.row_lengths(), tf.int32)


def wait(steps):
    """0 after so many steps of a loop."""
    return tf.while_loop(lambda i: i < steps, lambda i: (i + 1,), (0,))[0] * 0


def reversed_rows(ids, lengths, max_new_tokens):
    """Rows reversed and cut, padded with -1, and how long they are."""
    lengths = tf.minimum(lengths, tf.shape(ids)[1])
    kept = tf.minimum(lengths, max_new_tokens) + wait(tf.reduce_max(max_new_tokens))
    reverse = tf.reverse_sequence(ids, lengths, seq_axis=1)
    return tf.RaggedTensor.from_tensor(reverse, lengths=kept).to_tensor(-1), kept


class Toy(tf.Module):
    """See above. A version above 1 writes its number before the text."""

    def __init__(self, version):
        super().__init__()
        # A variable, so that a test sees whether the loader restores them.
        self.version = tf.Variable(version)

    def prefix(self):
        return tf.where(
            self.version > 1,
            tf.strings.join(["v", tf.strings.as_string(self.version)]),
            "",
        )

    @tf.function(input_signature=[STRINGS])
    def serving_default(self, prompt):
        rows = tf.fill(tf.shape(prompt), 1)
        zeros = tf.zeros(tf.shape(prompt))
        return self.generate(prompt, rows * 8, zeros, rows * 0, zeros + 1, rows * 0)

    @tf.function(input_signature=[STRINGS, INTS, FLOATS, INTS, FLOATS, INTS])
    def generate(self, prompt, max_new_tokens, temperature, top_k, top_p, seed):
        max_new_tokens = tf.where(max_new_tokens == -1, 12, max_new_tokens)
        temperature = tf.where(temperature == -1, 0.0, temperature)
        ids, lengths = tokens_of(tf.strings.upper(prompt, "utf-8"))
        ids, kept = reversed_rows(ids, lengths, max_new_tokens)
        text = tf.strings.unicode_encode(
            tf.RaggedTensor.from_tensor(ids, lengths=kept), "UTF-8"
        )
        controls = tf.strings.join(
            [
                " t=",
                tf.strings.as_string(temperature, precision=2),
                " k=",
                tf.strings.as_string(top_k),
                " p=",
                tf.strings.as_string(top_p, precision=2),
                " s=",
                tf.strings.as_string(seed),
            ]
        )
        text = tf.strings.join(
            [self.prefix(), text, tf.where(temperature > 0, controls, "")]
        )
        reason = tf.where(kept < lengths, "length", "stop")
        return {"text": text, "num_tokens": kept, "finish_reason": reason}

    @tf.function(input_signature=[TABLES, TABLES])
    def chat(self, roles, contents):
        rows = tf.fill([tf.shape(roles)[0]], -1)
        unset = tf.cast(rows, tf.float32)
        return self.chat_with_controls(roles, contents, rows, unset, rows, unset, rows)

    @tf.function(input_signature=[TABLES, TABLES, INTS, FLOATS, INTS, FLOATS, INTS])
    def chat_with_controls(
        self, roles, contents, max_new_tokens, temperature, top_k, top_p, seed
    ):
        last = tf.reduce_sum(tf.cast(roles != "", tf.int32), axis=1) - 1
        question = tf.gather(contents, last, batch_dims=1)
        answer = self.generate(
            question, max_new_tokens, temperature, top_k, top_p, seed
        )
        names = tf.strings.reduce_join(roles, axis=1, separator=" ")
        names = tf.strings.strip(names)
        return {**answer, "text": tf.strings.join([names, ": ", answer["text"]])}

    @tf.function(input_signature=[STRINGS])
    def summarize(self, text):
        one = tf.strings.length(text) * 0 + 1
        return {"text": tf.strings.substr(text, 0, 3), "num_parts": one}

    @tf.function(input_signature=[STRINGS, STRINGS, STRINGS])
    def translate(self, text, source, target):
        one = tf.strings.length(text) * 0 + 1
        joined = tf.strings.join([source, ">", target, " ", text])
        return {"text": joined, "num_parts": one}

    @tf.function(input_signature=[ID_ROWS, INTS, INTS, FLOATS, INTS, FLOATS, INTS])
    def generate_ids(
        self, token_ids, lengths, max_new_tokens, temperature, top_k, top_p, seed
    ):
        max_new_tokens = tf.where(max_new_tokens == -1, 12, max_new_tokens)
        ids, kept = reversed_rows(token_ids, lengths, max_new_tokens)
        # Every input must be in the graph, though the sampling ones change nothing.
        unused = tf.cast(temperature + top_p, tf.int32) + top_k + seed
        return {"token_ids": ids, "num_tokens": kept + unused * 0}

    @tf.function(input_signature=[STRINGS])
    def score(self, text):
        ids, counts = tokens_of(text)
        log_probs = tf.cast(ids[:, 1:], tf.float32) * -0.1
        return {
            "log_probs": tf.where(ids[:, 1:] >= 0, log_probs, 0.0),
            "token_ids": ids,
            "num_tokens": counts,
        }

    @tf.function(input_signature=[STRINGS])
    def tokenize(self, text):
        ids, counts = tokens_of(text)
        return {"token_ids": ids, "num_tokens": counts}


def save_toy(path: Path, version: int = 1) -> None:
    """Write a version folder."""
    toy = Toy(version)
    signatures = {
        name: getattr(toy, name)
        for name in (
            "serving_default",
            "generate",
            "generate_ids",
            "chat",
            "chat_with_controls",
            "summarize",
            "translate",
            "score",
            "tokenize",
        )
    }
    tf.saved_model.save(toy, str(path), signatures)


def save_compiled(path: Path) -> None:
    """Write a version folder whose only signature XLA must compile."""
    module = tf.Module()
    module.double = tf.function(
        lambda numbers: {"numbers": numbers * 2.0},
        input_signature=[FLOATS],
        jit_compile=True,
    )
    tf.saved_model.save(module, str(path), {"serving_default": module.double})
