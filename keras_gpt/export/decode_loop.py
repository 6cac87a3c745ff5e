"""`keras_gpt.generate` as one graph of plain TensorFlow operations.

The programs are those of `keras_gpt.generation`, with shapes that are known only when
the graph runs, and a loop around them that reads a row's context anew when it is full.
"""

# Axes: b batch, p prompt position, n new token, w window position

import tensorflow as tf

from keras_gpt.generation.programs import loop_program, prefill_program
from keras_gpt.generation.sampling import draw_uniforms_by_ops

# what a row keeps when its context is read anew
_CARRIED = ("seen", "done", "tokens", "log_probs", "step", "form")


def generate_ids(model, settings, token_ids, lengths, controls):
    """Continue prompts; see `keras_gpt.generate`.

    Args:
        model: A `GPT` on the TensorFlow backend.
        settings: The checked `Settings`, for what all rows have.
        token_ids: int32 `(b, p)`, padded on the right with any valid ids.
        lengths: int32 `(b,)`, each from 1 to the model's context.
        controls: By the names in `ROW_CONTROLS`, each `(b,)` and checked; and of a
            model with adapters the number of each row's as `"adapter"`.

    Returns:
        New ids int32 `(b, n)`, n the settings' `max_new_tokens`, -1 behind each row's
        last; their log-probabilities float32 `(b, n)`; and booleans `(b,)`, whether a
        stop id or the end of the form ended the row.
    """
    batch_size, max_new_tokens = tf.shape(lengths)[0], settings.max_new_tokens
    fixed = {
        name: tf.fill([batch_size], tf.constant(getattr(settings, name), tf.float32))
        for name in ("min_p", "repetition_penalty")
    }
    inputs = {
        **controls,
        **fixed,
        "stop_ids": _find_stop_ids(settings, controls),
        "uniforms": draw_uniforms_by_ops(controls["seed"], max_new_tokens),
        "until": tf.reduce_max(tf.concat([controls["max_new_tokens"], [0]], 0)),
    }
    is_prompt = tf.sequence_mask(lengths, tf.shape(token_ids)[1])
    state = {
        "seen": _mark_tokens(token_ids, is_prompt, model.config.vocab_size),
        "done": controls["max_new_tokens"] <= 0,
        "tokens": tf.fill([batch_size, max_new_tokens], -1),
        "log_probs": tf.zeros([batch_size, max_new_tokens]),
        "step": tf.constant(0),
    }
    form = settings.form
    if form is not None:
        names = ("following", "kinds", "is_over")
        inputs |= {name: tf.constant(getattr(form, name)) for name in names}
        state["form"] = tf.zeros_like(lengths)
    is_compiled = settings.flavour == "xla"
    read = _read_and_decode
    if is_compiled:
        read = tf.function(read, jit_compile=True)

    def goes_on(state, starts):
        del starts
        some = tf.reduce_any(tf.logical_not(state["done"]))
        return tf.logical_and(some, state["step"] < inputs["until"])

    def read_window(state, starts):
        return read(model, token_ids, lengths, inputs, state, starts, is_compiled)

    # a dictionary's tensors keep their shapes but for the batch, which is unknown
    state, _ = tf.while_loop(goes_on, read_window, (state, tf.zeros_like(lengths)))
    tokens = state["tokens"]
    num_tokens = tf.reduce_sum(tf.cast(tokens >= 0, tf.int32), axis=1)
    is_stopped = num_tokens < controls["max_new_tokens"]
    if form is not None:
        is_stopped |= tf.gather(inputs["is_over"], state["form"])
    return tokens, state["log_probs"], is_stopped


def _find_stop_ids(settings, controls):
    """Those of all rows, or of each row's adapter, padded with -1."""
    if not settings.adapters:
        return tf.constant([-1, *settings.stop_ids], tf.int32)
    kinds = tf.ragged.constant([settings.stop_ids, *settings.adapters.values()])
    return tf.gather(kinds.to_tensor(-1), controls["adapter"])


def _read_and_decode(model, token_ids, lengths, inputs, state, starts, fixed):
    """Read each row's window of its text, then decode until one is full or all end."""
    context_length = model.config.context_length
    num_new = tf.reduce_sum(tf.cast(state["tokens"] >= 0, tf.int32), axis=1)  # (b,)
    ends = lengths + num_new
    # a row that would outgrow the context forgets the older half of it
    is_full = ends - starts > context_length
    starts = tf.where(is_full, ends - max(1, context_length // 2), starts)
    windows = tf.where(state["done"], 1, ends - starts)
    if fixed:  # XLA needs sizes that follow from the inputs' shapes
        cache_length = tf.shape(token_ids)[1] + state["tokens"].shape[1]
        cache_length = tf.minimum(cache_length, context_length)
        longest = cache_length
    else:
        longest = tf.reduce_max(windows)
        cache_length = tf.reduce_max(lengths + inputs["max_new_tokens"])
        cache_length = tf.minimum(cache_length, context_length)
    window_ids = _take_windows(token_ids, lengths, state, starts, windows, longest)
    prefill = prefill_program(model, cache_length)
    decode = loop_program(model, cache_length)
    ours = {**inputs, "token_ids": window_ids, "lengths": windows}
    state = decode(prefill(state, ours), ours)
    return {name: state[name] for name in _CARRIED if name in state}, starts


def _take_windows(token_ids, lengths, state, starts, windows, longest):
    """Ids `(b, w)` of prompt and new tokens from `starts` on, 0 behind each window."""
    w = tf.range(longest)
    place = starts[:, None] + w  # (b, w)
    in_prompt = tf.minimum(place, tf.shape(token_ids)[1] - 1)
    in_new = tf.clip_by_value(place - lengths[:, None], 0, state["tokens"].shape[1] - 1)
    ids = tf.where(
        place < lengths[:, None],
        tf.gather(token_ids, in_prompt, batch_dims=1),
        tf.gather(state["tokens"], in_new, batch_dims=1),
    )
    return tf.where(w < windows[:, None], ids, 0)


def _mark_tokens(token_ids, is_prompt, vocab_size):
    """Booleans `(b, vocab_size)`: the tokens of each prompt."""
    rows = tf.where(is_prompt)[:, 0]
    ids = tf.cast(tf.boolean_mask(token_ids, is_prompt), tf.int64)
    shape = [tf.shape(token_ids, tf.int64)[0], vocab_size]
    counts = tf.scatter_nd(tf.stack([rows, ids], 1), tf.ones_like(ids), shape)
    return counts > 0
