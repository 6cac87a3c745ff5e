"""AdamW as GPTs are trained with it, in few passes over the memory."""

import keras

from keras_gpt import backend


@keras.saving.register_keras_serializable("keras_gpt")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW, of which matrices alone decay, in few passes over the memory.

    Keras's step goes over weights, gradients and means once for each product and sum;
    in a model with a large vocabulary that takes longer than its matrix products.

    Args:
        *args: As of `keras.optimizers.AdamW`.
        **kwargs: As of `keras.optimizers.AdamW`. With a moving average of the weights
            or accumulated gradients a step is Keras's.

    References:
        - [Loshchilov and Hutter, 2017](https://arxiv.org/abs/1711.05101)
    """

    def build(self, variables):
        if self.built:
            return
        self.exclude_from_weight_decay([v for v in variables if len(v.shape) < 2])
        super().build(variables)
        # Keras made them in turns
        moments = self.variables[-2 * len(variables) :]
        self.means, self.squares = moments[::2], moments[1::2]

    def apply(self, grads, trainable_variables=None):
        if not self._is_plain(grads, trainable_variables):
            super().apply(grads, trainable_variables)
            return
        self.build(trainable_variables)
        is_done = backend.update_adamw(
            trainable_variables,
            grads,
            self.means,
            self.squares,
            step=self.iterations + 1,
            learning_rate=self.learning_rate,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            weight_decay=self.weight_decay,
            clip_norm=self.global_clipnorm,
        )
        if is_done:
            self.iterations.assign_add(1)
        else:
            super().apply(grads, trainable_variables)

    def _is_plain(self, grads, variables):
        others = (
            *(self.amsgrad, self.clipnorm, self.clipvalue, self.loss_scale_factor),
            *(self.use_ema, self.gradient_accumulation_steps),
        )
        return (
            backend.update_adamw is not None
            and not any(others)
            and variables is not None
            and all(gradient is not None for gradient in grads)
            and (not self.built or 2 * len(variables) == len(self.means + self.squares))
        )
