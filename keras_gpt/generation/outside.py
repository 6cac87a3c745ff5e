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

from keras_gpt.generation.programs import OneByOne, compiled
from keras_gpt.generation.sampling import choose_in_numpy

_CONTROLS = ("temperature", "top_k", "top_p", "min_p")


def is_outside(model) -> bool:
    """Whether another engine runs a model."""
    return not isinstance(model, keras.Model)


class Outside(OneByOne):
    """Decoding with a pass of the engine for each token; see `OneByOne`.

    The engine has its logits in NumPy, and there the tokens are chosen, as `add_token`
    does it: a backend would take a tenth of the time of a small model's pass.
    """

    def prefill(self, model, cache_length):
        """The function that reads the prompts and chooses the first token."""
        del cache_length  # the engine's grows

        def prefill(state, inputs):
            state, inputs = _to_numpy(state), _to_numpy(inputs)
            lengths = inputs["lengths"]
            logits, cache = model.prefill(inputs["token_ids"], lengths)
            state |= {"token": np.zeros_like(lengths), "position": lengths - 1}
            _add_token(logits, state, inputs)
            return {**state, "cache": cache}

        return prefill

    def loop(self, model, cache_length):
        """The function that decodes until the rows end, fill up, or reach `until`."""

        def loop(state, inputs):
            cache = state["cache"]
            state = _to_numpy({k: v for k, v in state.items() if k != "cache"})
            inputs = _to_numpy(inputs)
            while True:
                goes_on = ~state["done"] & (state["step"] < inputs["until"])
                is_full = ~state["done"] & (state["position"] >= cache_length)
                if not goes_on.any() or is_full.any():
                    return {**state, "cache": cache}
                position = np.minimum(state["position"], cache_length - 1)
                logits, cache = model.decode(state["token"], cache, position)
                _add_token(logits, state, inputs)

        return loop


def _add_token(logits, state, inputs):
    """Choose each row's next token and note it where the row goes on, in place."""
    for row in np.flatnonzero(~state["done"]):
        step, seen = state["step"][row], state["seen"][row]
        penalized = _penalize(logits[row], seen, inputs["repetition_penalty"][row])
        if "allowed" in inputs:
            penalized = np.where(inputs["allowed"][row], penalized, -np.inf)
        token = choose_in_numpy(
            penalized,
            *(inputs[name][row] for name in _CONTROLS),
            inputs["uniforms"][row, step],
        )
        is_stop = token in inputs["stop_ids"][row]
        if not is_stop:
            state["tokens"][row, step] = token
            best = logits[row].max()
            total = np.exp(logits[row] - best).sum()
            state["log_probs"][row, step] = logits[row, token] - best - np.log(total)
        state["done"][row] = is_stop or step + 1 >= inputs["max_new_tokens"][row]
        state["token"][row] = token
        state["position"][row] += 1
        seen[token] = True
    state["step"] += 1


def _penalize(logits, seen, penalty):
    """As `penalize_repetition`, for one row."""
    if penalty == 1:
        return logits
    penalized = np.where(logits > 0, logits / penalty, logits * penalty)
    return np.where(seen, penalized, logits)


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


def _measuring_program(model, measure):
    del model
    return lambda state, inputs: measure(inputs["logits"], inputs["targets"])


def _to_numpy(tensors):
    """Copies, since they are changed in place."""
    return {name: np.array(ops.convert_to_numpy(x)) for name, x in tensors.items()}
