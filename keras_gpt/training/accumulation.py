"""Optimizers that add up the gradients of several batches, token by token."""

import keras
from keras import ops

from keras_gpt.loss import num_counted
from keras_gpt.training.muon import Muon

TOKEN_COUNT = "num_tokens"  # the last variable of these optimizers


class _ByTokens:
    """Weighs each batch of a step by the tokens that its loss is a mean over.

    Keras takes the mean of the batches' means, which counts a token of a batch with few
    of them more than another. Here a step is the one that a single large batch makes.
    """

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        # of the batches of a step so far
        self.num_tokens = self.add_variable((), name=TOKEN_COUNT, dtype="float32")

    def apply(self, grads, trainable_variables=None):
        count = num_counted()
        if count is not None:
            self.build(trainable_variables)
            num_batches = self.gradient_accumulation_steps
            is_later = ops.cast(self.variables[0] % num_batches != 0, "float32")
            total = count + is_later * self.num_tokens
            share = ops.divide_no_nan(count, total)
            grads = [None if g is None else g * (num_batches * share) for g in grads]
            for variable in self.variables:
                if variable.name.endswith("gradient_accumulator"):
                    variable.assign(variable * (1 - share))
            self.num_tokens.assign(total)
        super().apply(grads, trainable_variables)


@keras.saving.register_keras_serializable("keras_gpt")
class AccumulatingAdamW(_ByTokens, keras.optimizers.AdamW):
    """Keras's AdamW, whose `gradient_accumulation_steps` batches count by tokens."""


@keras.saving.register_keras_serializable("keras_gpt")
class AccumulatingMuon(_ByTokens, Muon):
    """Muon, whose `gradient_accumulation_steps` batches count by tokens."""
