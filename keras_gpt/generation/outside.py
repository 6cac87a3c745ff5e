"""Models that another engine runs: its passes, and our choice of tokens.

Such a model is no Keras model. It has a `config`; `prefill(token_ids, lengths)` and
`decode(token_ids, cache, position)`, which take NumPy arrays and give logits
`(b, v)` and a cache; and `read(token_ids)`, which gives logits `(b, t, v)` of a text in
parts.
"""

# Axes: b batch, t position, v vocabulary

import keras
import numpy as np
from keras import ops

from keras_gpt.generation.programs import OneByOne, add_token, compiled


def is_outside(model) -> bool:
    """Whether another engine runs a model."""
    return not isinstance(model, keras.Model)


class Outside(OneByOne):
    """Decoding with a pass of the engine for each token; see `OneByOne`."""

    def prefill(self, model, cache_length):
        """The function that reads the prompts and chooses the first token."""
        del cache_length  # the engine's grows
        add = compiled(model, _choice_program)

        def prefill(state, inputs):
            inputs = dict(inputs)
            token_ids, lengths = (
                ops.convert_to_numpy(inputs.pop(name))
                for name in ("token_ids", "lengths")
            )
            logits, cache = model.prefill(token_ids, lengths)
            position = ops.convert_to_tensor(lengths - 1)
            state = {**state, "token": ops.zeros_like(position), "position": position}
            return {**_add(add, logits, state, inputs), "cache": cache}

        return prefill

    def loop(self, model, cache_length):
        """The function that decodes until the rows end, fill up, or reach `until`."""
        add = compiled(model, _choice_program)

        def loop(state, inputs):
            state, inputs = dict(state), dict(inputs)
            cache, until = state.pop("cache"), ops.convert_to_numpy(inputs.pop("until"))
            while True:
                names = ("token", "position", "done", "step")
                token, position, done, step = (
                    ops.convert_to_numpy(state[name]) for name in names
                )
                goes_on = ~done & (step < until)
                if not goes_on.any() or (~done & (position >= cache_length)).any():
                    return {**state, "cache": cache}
                position = np.minimum(position, cache_length - 1)
                logits, cache = model.decode(token, cache, position)
                state = _add(add, logits, state, inputs)

        return loop


def measure_outside(model, measure):
    """`measure(logits, targets)` of all tokens, for scoring, a part at a time."""
    program = compiled(model, _measuring_program, measure=measure)

    def run(state, inputs):
        ids, targets = (
            ops.convert_to_numpy(inputs[name]) for name in ("token_ids", "targets")
        )
        results, start = [], 0
        for logits in model.read(ids):
            part = targets[:, start : start + logits.shape[1]]
            tensors = {"logits": logits, "targets": part}
            tensors = {k: ops.convert_to_tensor(v) for k, v in tensors.items()}
            # the engine writes the next logits into the same memory
            results.append(np.array(ops.convert_to_numpy(program(state, tensors))))
            start += logits.shape[1]
        return np.concatenate(results, axis=1)

    return run


def _choice_program(model):
    """Make the function that chooses each row's next token from logits."""
    del model
    return lambda state, inputs: add_token(inputs["logits"], state, inputs)


def _measuring_program(model, measure):
    del model
    return lambda state, inputs: measure(inputs["logits"], inputs["targets"])


def _add(add, logits, state, inputs):
    return add(state, {**inputs, "logits": ops.convert_to_tensor(logits)})
