"""How a GPT is compiled for training: optimizer, weight decay, learning rate."""

import inspect
import math

import keras
from keras import ops

from keras_gpt.config import suggest
from keras_gpt.training.accumulation import AccumulatingAdamW, AccumulatingMuon
from keras_gpt.training.adamw import AdamW
from keras_gpt.training.muon import Muon

# What arguments of `compile_model` default to
RECIPES = {
    "classic": {
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "final_learning_rate": None,
        "momentum": 0.95,
    },
    # Keras scales Muon's updates to the size of AdamW's, so one rate serves both
    "fast": {
        "optimizer": "muon",
        "learning_rate": 5e-3,
        "final_learning_rate": 0.0,
        "momentum": 0.9,
    },
}
SCHEDULES = ("cosine", "wsd", "constant")
OPTIMIZERS = ("adamw", "muon")
_NOT_NEGATIVE = (lambda x: 0 <= x < math.inf, "at least 0")
_FRACTION = (lambda x: 0 <= x < 1, "at least 0 and below 1")
_COUNT = (lambda x: 1 <= x == int(x), "a positive integer")
# Argument of `compile_model`: (whether a value is in range, the range in words)
_RANGES = {
    "recipe": (lambda x: x in RECIPES, f"one of {tuple(RECIPES)}"),
    "optimizer": (lambda x: x in OPTIMIZERS, f"one of {OPTIMIZERS}"),
    "learning_rate": (lambda x: 0 < x < math.inf, "above 0"),
    "momentum": _FRACTION,
    "weight_decay": _NOT_NEGATIVE,
    "beta_1": _FRACTION,
    "beta_2": _FRACTION,
    "clip_norm": (lambda x: 0 < x < math.inf, "above 0"),
    "accumulation_steps": _COUNT,
    "ema_momentum": _FRACTION,
    "total_steps": _COUNT,
    "warmup_steps": (lambda x: 0 <= x == int(x), "an integer of at least 0"),
    "schedule": (lambda x: x in SCHEDULES, f"one of {SCHEDULES}"),
    "final_learning_rate": _NOT_NEGATIVE,
    "decay_fraction": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
}
_MAY_BE_NONE = {"clip_norm", "ema_momentum", "final_learning_rate"}


@keras.saving.register_keras_serializable("keras_gpt")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then cosine decay, a plateau and linear decay, or no decay.

    Args:
        learning_rate: The highest.
        total_steps: Optimizer steps of the whole run.
        warmup_steps: Steps until the highest. Step 0 already learns.
        schedule: `"cosine"`; `"wsd"`, warm-up, stable, decay over the last
            `decay_fraction` of the steps; or `"constant"`.
        final_learning_rate: The last. Defaults to a tenth of the highest.
        decay_fraction: Of `"wsd"`. Defaults to 0.2.
        accumulation_steps: Batches for one step; Keras asks for the rate by batch.

    References:
        - [Loshchilov and Hutter, 2016](https://arxiv.org/abs/1608.03983), cosine
        - [Hu et al., 2024](https://arxiv.org/abs/2404.06395), WSD

    Example:

    >>> from keras_gpt.training import WarmupSchedule
    >>> schedule = WarmupSchedule(1.0, total_steps=100, warmup_steps=9)
    >>> [round(float(schedule(step)), 2) for step in (0, 9, 100)]
    [0.1, 1.0, 0.1]
    """

    def __init__(
        self,
        learning_rate,
        total_steps,
        *,
        warmup_steps=0,
        schedule="cosine",
        final_learning_rate=None,
        decay_fraction=0.2,
        accumulation_steps=1,
        name="WarmupSchedule",
    ):
        super().__init__()
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        self.final_learning_rate = final_learning_rate
        self.decay_fraction = decay_fraction
        self.accumulation_steps = accumulation_steps
        _check(**vars(self))
        if not warmup_steps < total_steps:
            raise ValueError(
                "`warmup_steps` must be below `total_steps`. Received: "
                f"warmup_steps={warmup_steps}, total_steps={total_steps}."
            )
        self.name = name

    def __call__(self, step):
        step = ops.cast(step // self.accumulation_steps, "float32")
        highest, final = self.learning_rate, self.final_learning_rate
        if final is None:
            final = highest / 10
        warmup = ops.minimum((step + 1) / (self.warmup_steps + 1), 1.0)
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        progress = ops.clip(progress, 0.0, 1.0)
        if self.schedule == "cosine":
            remaining = 0.5 * (1 + ops.cos(math.pi * progress))
        elif self.schedule == "wsd":
            remaining = ops.minimum((1 - progress) / self.decay_fraction, 1.0)
        else:
            remaining = ops.ones_like(progress)
        return warmup * (final + (highest - final) * remaining)

    def get_config(self):
        return vars(self).copy()


def _check(**options):
    """Raise `ValueError` unless each argument of `compile_model` is in its range."""
    for name, value in options.items():
        is_valid, wanted = _RANGES[name]
        if name in _MAY_BE_NONE:
            if value is None:
                continue
            wanted += ", or None"
        try:
            if is_valid(value):
                continue
        except (TypeError, ValueError, OverflowError):  # a text, NaN, infinity
            pass
        raise ValueError(f"`{name}` must be {wanted}. Received: {value!r}.")


def compile_model(
    model,
    learning_rate: float | None = None,
    *,
    recipe: str = "classic",
    total_steps: int | None = None,
    warmup_steps: int = 0,
    schedule: str | None = None,
    final_learning_rate: float | None = None,
    optimizer: str | None = None,
    momentum: float | None = None,
    weight_decay: float = 0.1,
    beta_1: float = 0.9,
    beta_2: float = 0.95,
    clip_norm: float | None = 1.0,
    accumulation_steps: int = 1,
    ema_momentum: float | None = None,
    jit_compile: bool | None = None,
    remat: bool = False,
    **kwargs,
) -> None:
    """Compile a GPT as GPTs are trained.

    Args:
        model: A `GPT`.
        learning_rate: The highest learning rate. Defaults to the recipe's: 1e-3, or
            5e-3 if `"fast"`.
        recipe: What the arguments default to: `"classic"`, AdamW and a rate that ends
            at a tenth, or `"fast"`, Muon and a rate that ends at 0, which reaches the
            same loss in fewer steps of a model with `keras_gpt.FAST_ARCHITECTURE`.
        total_steps: Optimizer steps of the whole run, which the schedule needs.
            Defaults to `None`: no schedule, and none of the next three arguments.
        warmup_steps: Steps of linear warm-up.
        schedule: `"cosine"`, `"wsd"` or `"constant"`; see `WarmupSchedule`. Defaults
            to `"cosine"`.
        final_learning_rate: Of the schedule. Defaults to a tenth of the highest, or
            0 if the recipe is `"fast"`.
        optimizer: `"adamw"`, or `"muon"` with AdamW for all but the matrices inside
            the blocks. Defaults to the recipe's.
        momentum: Of Muon. Defaults to 0.95, or 0.9 if the recipe is `"fast"`.
        weight_decay: Decoupled; on matrices only, not on biases and norms.
        beta_1: Of AdamW.
        beta_2: Of AdamW.
        clip_norm: Largest global norm of the gradients, or `None`.
        accumulation_steps: Batches for one step, which is the step of one batch with
            all their tokens.
        ema_momentum: Keep an exponential moving average of the weights with this
            momentum; `fit` puts it in place at its end. `None` for none.
        jit_compile: Defaults to what is fastest on the backend and device.
        remat: Whether training keeps only the input of each block, and computes what
            is inside a second time for the gradients: less memory, more time.
        **kwargs: Other arguments of `GPT.compile`.

    Raises:
        TypeError: An argument is unknown (the nearest is named).
        ValueError: An argument is out of range, or needs `total_steps`.

    References:
        - [Loshchilov and Hutter, 2017](https://arxiv.org/abs/1711.05101), AdamW
        - [Jordan et al., 2024](https://kellerjordan.github.io/posts/muon/), Muon

    Example:

    >>> import keras_gpt
    >>> config = keras_gpt.GPTConfig(vocab_size=65, context_length=16,
    ...                              embedding_dimension=32, num_layers=1, num_heads=2)
    >>> model = keras_gpt.GPT(config)
    >>> keras_gpt.training.compile_model(model, 1e-3, total_steps=100, warmup_steps=10)
    """
    for name in kwargs:
        if name not in inspect.signature(keras.Model.compile).parameters:
            said = suggest("argument", name, (*_RANGES, "jit_compile", "remat"))
            raise TypeError(f"Unknown argument of compile_model. {said}")
    _check(recipe=recipe)
    default = RECIPES[recipe]
    optimizer = default["optimizer"] if optimizer is None else optimizer
    momentum = default["momentum"] if momentum is None else momentum
    if learning_rate is None:
        learning_rate = default["learning_rate"]
    if final_learning_rate is None and total_steps is not None:
        final_learning_rate = default["final_learning_rate"]
    of_schedule = {
        "warmup_steps": warmup_steps or None,
        "schedule": schedule,
        "final_learning_rate": final_learning_rate,
    }
    given = {name: x for name, x in of_schedule.items() if x is not None}
    _check(
        learning_rate=learning_rate,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        clip_norm=clip_norm,
        accumulation_steps=accumulation_steps,
        ema_momentum=ema_momentum,
        **given,
    )
    rate = learning_rate
    if total_steps is not None:
        given["accumulation_steps"] = accumulation_steps
        rate = WarmupSchedule(learning_rate, total_steps, **given)
    elif given:
        raise ValueError(
            f"`{'`, `'.join(given)}` need `total_steps`, the optimizer steps of "
            "the whole run: give it, or leave them out."
        )
    arguments = {
        "learning_rate": rate,
        "weight_decay": weight_decay,
        "epsilon": 1e-8,
        "global_clipnorm": clip_norm,
        # Keras calls 1 an error
        "gradient_accumulation_steps": (
            accumulation_steps if accumulation_steps > 1 else None
        ),
        "use_ema": ema_momentum is not None,
        "ema_momentum": 0.99 if ema_momentum is None else ema_momentum,
    }
    if optimizer == "adamw":
        adamw = AdamW if accumulation_steps == 1 else AccumulatingAdamW
        made = adamw(beta_1=beta_1, beta_2=beta_2, **arguments)
    else:
        muon = Muon if accumulation_steps == 1 else AccumulatingMuon
        made = muon(
            momentum=momentum,
            adam_beta_1=beta_1,
            adam_beta_2=beta_2,
            adam_weight_decay=weight_decay,
            exclude_layers=["embedding"],
            **arguments,
        )
    made.exclude_from_weight_decay(
        var_list=[v for v in model.trainable_variables if len(v.shape) < 2]
    )
    model.compile(optimizer=made, jit_compile=jit_compile, remat=remat, **kwargs)
