"""What a SavedModel offers: text in, text out, and the steps between."""

# Axes: b batch, t position, n new token

import dataclasses

import tensorflow as tf

from keras_gpt.controls import CONTROLS
from keras_gpt.export.chat_ops import ChatEncoder
from keras_gpt.export.checks import check
from keras_gpt.export.decode_loop import generate_ids
from keras_gpt.export.settings import LIMIT, OWN, ROW_CONTROLS
from keras_gpt.export.stored_weights import StoredWeights
from keras_gpt.export.task_ops import TaskAnswers, as_messages, find_frame
from keras_gpt.export.text_ops import TextDecoder, make_text_encoder
from keras_gpt.generation.scoring import score_program


class ServedModel:
    """A language model whose methods are the signatures of a SavedModel.

    Args:
        lm: A `LanguageModel` on the TensorFlow backend.
        settings: The checked `Settings`.
    """

    def __init__(self, lm, settings):
        tokenizer = lm.tokenizer
        self.settings = settings
        self.weights = StoredWeights(lm.model, settings.weights)
        self.encoder = make_text_encoder(tokenizer)
        self.decoder = TextDecoder(tokenizer)
        self.start_ids = list(tokenizer.start_ids)
        self.end_id = tokenizer.end_of_text_id
        self.encode_chat = None
        if settings.layout is not None:
            self.encode_chat = ChatEncoder(settings.layout, tokenizer, self.encoder)
        self.task_answers = {
            name: TaskAnswers(
                lm,
                name,
                settings,
                self.encoder,
                self._encode_questions,
                self._answer_greedily,
            )
            for name in settings.tasks
            if name in ("summarize", "translate")
        }
        self.message_frame = find_frame(lm, "complete")
        # one graph, which all signatures that write text call
        self._continue = tf.function(
            self._continue, autograph=False, reduce_retracing=True
        )

    def save(self, path):
        """Write the SavedModel.

        Args:
            path: An empty folder, or one to be made.
        """
        # not the Keras model: its variables would be stored once more, and the loader
        # in C++ would not find them
        root = tf.Module()
        root.stored = self.weights.stored
        root.expanded = self.weights.expanded
        root.encoder = self.encoder
        root.decoder = self.decoder
        root.encode_chat = self.encode_chat
        root.task_answers = self.task_answers
        tf.saved_model.save(root, str(path), signatures=self.signatures())

    def signatures(self):
        """The signatures by name, traced."""
        tasks = {name: self._task_signature(name) for name in self.settings.tasks}
        controls = [
            tf.TensorSpec([None], CONTROLS[name].dtype, name=name)
            for name in ROW_CONTROLS
        ]
        if self.settings.adapters:
            controls.append(_strings("adapter"))
        token_ids = tf.TensorSpec([None, None], tf.int32, name="token_ids")
        lengths = tf.TensorSpec([None], tf.int32, name="lengths")
        inputs = {
            "serving_default": self._default_signature(),
            **tasks,
            "generate": (self.generate, [_strings("prompt"), *controls]),
            "generate_ids": (self.generate_ids, [token_ids, lengths, *controls]),
            "score": (self.score, [_strings("text")]),
            "tokenize": (self.tokenize, [_strings("text")]),
        }
        if "chat" in tasks:
            messages = tasks["chat"][1]
            inputs["chat_with_controls"] = self.chat, [*messages, *controls]
        return {
            name: tf.function(
                inputs[name][0], input_signature=inputs[name][1], autograph=False
            ).get_concrete_function()
            for name in self.settings.signatures
        }

    def _task_signature(self, name):
        """The method of a task, and its inputs: texts alone."""
        text = _strings("text")
        if name == "summarize":
            return self.summarize, [text]
        if name == "translate":
            return self.translate, [text, _strings("source"), _strings("target")]
        if name == "chat":
            shape = [None, None]
            return self.chat, [_strings("roles", shape), _strings("contents", shape)]
        return self.generate, [_strings("prompt")]

    def _default_signature(self):
        """As `_task_signature`, but the input is one `prompt` where one will do."""
        method, specs = self._task_signature(self.settings.default)
        prompt = _strings("prompt")
        if method == self.chat:
            return self.answer, [prompt]
        if method == self.translate:
            if len(self.settings.languages) > 1:
                return method, [prompt, *specs[1:]]
            return self.translate_only_pair, [prompt]
        return method, [prompt]

    def generate(self, prompt, *controls):
        """Continue prompts, each row with its own controls, or the model's.

        These are the `ROW_CONTROLS`, and of a model with adapters the name of one.
        """
        controls = self._check_controls(tf.shape(prompt)[0], controls)
        token_ids, lengths = self._encode_prompts(
            "prompt", prompt, self.settings.max_prompt_tokens
        )
        return self._write(token_ids, lengths, controls)

    def chat(self, roles, contents, *controls):
        """Answer the last messages of conversations, with controls as `generate`."""
        controls = self._check_controls(tf.shape(roles)[0], controls)
        context_length = self.weights.model.config.context_length
        room = context_length - tf.minimum(
            controls["max_new_tokens"], context_length // 2
        )
        room = tf.minimum(room, self.settings.max_prompt_tokens)
        token_ids, lengths = self.encode_chat(roles, contents, room)
        return self._write(token_ids, lengths, controls)

    def answer(self, prompt):
        """Answer messages of a user, below the instruction if there is one."""
        before, behind = self.message_frame
        return self.chat(*as_messages(tf.strings.join([before, prompt, behind])))

    def summarize(self, text):
        """Summarize texts."""
        summaries, num_parts = self.task_answers["summarize"].summarize(text)
        return {"text": summaries, "num_parts": num_parts}

    def translate(self, text, source, target):
        """Translate texts between languages given by their codes."""
        answers = self.task_answers["translate"]
        translations, num_parts = answers.translate(text, source, target)
        return {"text": translations, "num_parts": num_parts}

    def translate_only_pair(self, prompt):
        """Translate texts between the two languages that the model was tuned for."""
        [pair] = self.settings.languages
        source, target = (tf.fill(tf.shape(prompt), code) for code in pair)
        return self.translate(prompt, source, target)

    def _encode_questions(self, texts):
        """Ids and lengths of prompts of a task, as messages where there is a template.

        They have room in the context, or nearly: what is a token longer slides.
        """
        if self.encode_chat is None:
            return self._encode_prompts("text", texts, LIMIT)
        context_length = self.weights.model.config.context_length
        room = tf.fill([tf.shape(texts)[0]], context_length)
        return self.encode_chat(*as_messages(texts), room)

    def _answer_greedily(self, token_ids, lengths):
        controls = self._own_controls(tf.shape(lengths)[0])
        controls["temperature"] = tf.zeros_like(controls["temperature"])
        tokens, _, _ = self._continue(token_ids, lengths, controls)
        return self.decoder(tokens)

    def _write(self, token_ids, lengths, controls):
        """The text that follows token ids, and what is known about it."""
        tokens, _, is_stopped = self._continue(token_ids, lengths, controls)
        return {
            "text": self.decoder(tokens),
            "num_tokens": _count_tokens(tokens),
            "finish_reason": tf.where(is_stopped, "stop", "length"),
        }

    def _own_controls(self, batch_size):
        """The model's own controls for each row."""
        controls = {
            name: tf.fill(
                [batch_size],
                tf.constant(getattr(self.settings, name), CONTROLS[name].dtype),
            )
            for name in ROW_CONTROLS
        }
        if self.settings.adapters:
            controls["adapter"] = tf.zeros([batch_size], tf.int32)
        return controls

    def generate_ids(self, token_ids, lengths, *controls):
        """Continue token ids."""
        controls = self._check_controls(tf.shape(token_ids)[0], controls)
        most = self.settings.max_prompt_tokens
        t = tf.shape(token_ids)[1]
        lengths = check(
            (lengths >= 1) & (lengths <= tf.minimum(most, t)),
            lengths,
            f"`lengths` must be from 1 to {most} and to the width of `token_ids`",
        )
        vocab_size = self.weights.model.config.vocab_size
        is_padding = tf.logical_not(tf.sequence_mask(lengths, t))
        is_id = (token_ids >= 0) & (token_ids < vocab_size)
        token_ids = check(
            is_id | is_padding,
            token_ids,
            f"`token_ids` must be from 0 to {vocab_size - 1}",
        )
        token_ids = tf.where(is_padding, 0, token_ids)
        tokens, log_probs, _ = self._continue(token_ids, lengths, controls)
        return {
            "token_ids": tokens,
            "log_probs": log_probs,
            "num_tokens": _count_tokens(tokens),
        }

    def score(self, text):
        """Log-probability of each token of texts given those before it."""
        context_length = self.weights.model.config.context_length
        token_ids, lengths = self._encode_prompts("text", text, context_length + 1)
        t = tf.shape(token_ids)[1]
        # a text of one token leaves nothing to predict: let there be one place
        padded = tf.pad(token_ids, [[0, 0], [0, 1]])
        inputs = {"token_ids": padded[:, : tf.maximum(t - 1, 1)]}
        inputs["targets"] = padded[:, 1 : tf.maximum(t, 2)]
        with self.weights.read():
            log_probs = score_program(self.weights.model)({}, inputs)[:, : t - 1]
        is_token = tf.sequence_mask(lengths, t)
        return {
            "log_probs": tf.where(is_token[:, 1:], log_probs, 0.0),
            "token_ids": tf.where(is_token, token_ids, -1),
            "num_tokens": lengths,
        }

    def tokenize(self, text):
        """Token ids of texts."""
        token_ids, lengths = self.encoder(text)
        return {"token_ids": token_ids, "num_tokens": lengths}

    def _continue(self, token_ids, lengths, controls):
        top_k = controls["top_k"]
        controls = {**controls, "top_k": tf.where(top_k == 0, LIMIT, top_k)}
        with self.weights.read():
            return generate_ids(
                self.weights.model, self.settings, token_ids, lengths, controls
            )

    def _encode_prompts(self, name, texts, most):
        """Ids and lengths of texts, as `LanguageModel` gives them to its model."""
        batch_size = tf.shape(texts)[0]
        texts = check(
            batch_size > 0, texts, f"`{name}` must have at least one row", batch_size
        )
        token_ids, lengths = self.encoder(texts)
        token_ids = tf.maximum(token_ids, 0)
        is_empty = lengths == 0
        if self.start_ids:
            start = tf.tile(tf.constant([self.start_ids], tf.int32), [batch_size, 1])
            token_ids = tf.concat([start, token_ids], axis=1)
            lengths += len(self.start_ids)
        elif self.end_id is not None:  # it stands for an empty text
            room = tf.maximum(1 - tf.shape(token_ids)[1], 0)
            token_ids = tf.pad(token_ids, [[0, 0], [0, room]])
            token_ids = tf.where(is_empty[:, None], self.end_id, token_ids)
            lengths = tf.maximum(lengths, 1)
        else:
            lengths = check(
                tf.logical_not(is_empty),
                lengths,
                f"`{name}` must not be empty: this tokenizer has no end-of-text token "
                "to start from",
                texts,
            )
        is_short = lengths <= most
        message = f"`{name}` is longer than {most} tokens: each row's number is shown"
        token_ids = check(is_short, token_ids, message, lengths)
        return token_ids, lengths

    def _check_controls(self, batch_size, values):
        """The controls of each row by name, the model's own where none are given.

        One out of its range fails with a message that says what is wanted.
        """
        bounds = {
            "max_new_tokens": {"most": self.settings.max_new_tokens},
            "top_k": {"least": 0},  # for no limit
        }
        controls = self._own_controls(batch_size)
        for name, rows in zip(ROW_CONTROLS, values, strict=False):
            rows = _check_size(name, rows, batch_size)
            control = dataclasses.replace(
                CONTROLS[name], off=None, **bounds.get(name, {})
            )
            least, most = (
                tf.cast(bound, tf.float64) for bound in (control.least, control.most)
            )
            rows = tf.where(rows == OWN, controls[name], rows)
            numbers = tf.cast(rows, tf.float64)
            is_above = numbers > least if control.is_least_open else numbers >= least
            is_valid = is_above & (numbers <= most) & tf.math.is_finite(numbers)
            message = f"`{name}` must be {control.wanted}, or {OWN} for the model's own"
            controls[name] = check(is_valid, rows, message)
        if self.settings.adapters and values:
            rows = _check_size("adapter", values[-1], batch_size)
            controls["adapter"] = self._find_adapters(rows)
        return controls

    def _find_adapters(self, names):
        """The numbers of adapters, from 1, and 0 for an empty name."""
        is_name = names[:, None] == ["", *self.settings.adapters]
        known = ", ".join(self.settings.adapters)
        return check(
            tf.reduce_any(is_name, axis=1),
            tf.argmax(tf.cast(is_name, tf.int32), 1, tf.int32),
            f"`adapter` must be empty or one of {known}",
            names,
        )


def _strings(name, shape=(None,)):
    return tf.TensorSpec(shape, tf.string, name=name)


def _check_size(name, rows, batch_size):
    sizes = tf.stack([tf.shape(rows)[0], batch_size])
    is_alike = (sizes[0] == batch_size) & (batch_size > 0)
    message = f"`{name}` must have one value for each of at least one row"
    return check(is_alike, rows, message, sizes)


def _count_tokens(tokens):
    return tf.reduce_sum(tf.cast(tokens >= 0, tf.int32), axis=1)
