"""Steps and time in which `recipe="fast"` reaches the loss where the classic one ends.

Both train a model of the same sizes on the same batches: the classic recipe as
`examples/shakespeare_char_cpu.yaml` and `keras-gpt quickstart` had it before, the fast
one with the architecture that belongs to it, over `--fraction` of the steps. The
validation loss is over the whole of the validation text, without overlap, or over its
first `--validation-batches`. Times are those of training alone: the median of the time
of a step, times the steps.

With --ablate, the fast recipe is trained again without one of its parts.
"""

import argparse
import statistics
import sys
import tempfile
import time

from common import BACKENDS, answer_worker, describe_machine, print_table, run_worker

SIZES = {  # parameters inside the blocks, about: width, layers, heads
    "0.8M": (128, 4, 4),
    "3M": (256, 4, 4),
    "10M": (384, 6, 6),
}
SETTINGS = {
    "characters": {
        "model": {"preset": "char_cpu"},
        "batch_size": 12,
        "steps": 2000,
        "recipe": {"learning_rate": 1e-3, "beta_2": 0.99},
    },
    "byte_pair": {
        "model": {"preset": "quickstart"},
        "batch_size": 16,
        "steps": 500,
        "recipe": {"learning_rate": 2e-3},
    },
}
# what the fast recipe has instead: arguments of `compile_model`, fields of `GPTConfig`
ABLATIONS = {
    "muon": ({"optimizer": "adamw", "learning_rate": 3e-3}, {}),
    "momentum": ({"momentum": 0.95}, {}),
    "final_learning_rate": ({"final_learning_rate": 5e-4}, {}),
    "architecture": ({}, None),
    "rotary": ({}, {"position_embedding": "learned"}),
    "swiglu": ({}, {"activation": "gelu"}),
    "qk_norm": ({}, {"qk_norm": False}),
    "rms_norm": ({}, {"normalization": "layer_norm"}),
}


def main() -> int:
    """Train, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", default="embedded", help="a text file, or embedded")
    parser.add_argument("--tokenizer", choices=SETTINGS, default="byte_pair")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["0.8M"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of the classic recipe")
    parser.add_argument("--fraction", type=float, default=0.6, help="of its steps")
    parser.add_argument("--validations", type=int, default=10, help="in a run")
    parser.add_argument("--validation-batches", type=int, help="instead of all")
    parser.add_argument("--ablate", nargs="+", choices=ABLATIONS, default=[])
    parser.add_argument("--backend", choices=BACKENDS, default="tensorflow")
    arguments = parser.parse_args()
    setting = SETTINGS[arguments.tokenizer]
    steps = arguments.steps or setting["steps"]
    few = max(1, round(arguments.fraction * steps))
    print(
        describe_machine(
            setting=f"{arguments.corpus} by {arguments.tokenizer}, {steps:,} steps of "
            f"{setting['batch_size']} sequences, {arguments.backend}, "
            f"{arguments.seeds} seeds"
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        common = {"folder": folder, "backend": arguments.backend}
        common |= {name: setting[name] for name in ("model", "batch_size", "recipe")}
        common |= {
            "validations": arguments.validations,
            "validation_batches": arguments.validation_batches,
        }
        prepare = {"task": "prepare", "folder": folder, "corpus": arguments.corpus}
        run_worker(__file__, None, **prepare, tokenizer=arguments.tokenizer)
        rows, losses = [], []
        for size in arguments.sizes:
            for seed in range(arguments.seeds):
                common |= {"size": size, "seed": seed}
                classic = measure(**common, steps=steps)
                fast = measure(**common, steps=few, fast=True, limit=classic["loss"])
                rows.append(describe(size, seed, classic, fast))
                print("...", *rows[-1], file=sys.stderr)
                losses.append(fast["loss"])
        columns = ["size", "seed", "classic", "fast"]
        columns += ["steps to its loss", "of the steps", "of the time"]
        print_table(columns, rows)
        if arguments.ablate:
            rows = [["all of it", *summarize(losses[-arguments.seeds :])]]
            for name in arguments.ablate:
                found = [
                    measure(
                        **{**common, "seed": seed}, steps=few, fast=True, without=name
                    )["loss"]
                    for seed in range(arguments.seeds)
                ]
                rows.append([f"without {name}", *summarize(found)])
            print()
            print_table([arguments.sizes[-1], "validation loss", "of seeds"], rows)
    return 0


def measure(backend: str, recipe: dict, fast: bool = False, **arguments) -> dict:
    """Train in a fresh process, by either recipe."""
    return run_worker(
        __file__, backend, task="train", recipe={} if fast else recipe, fast=fast,
        **arguments,
    )  # fmt: skip


def describe(size: str, seed: int, classic: dict, fast: dict) -> list:
    """A row of the table."""
    steps, step_ms = fast["reached"], fast["step_ms"]
    cells = ["not reached", "", ""]
    if steps is not None:
        time_of = steps * step_ms / (classic["steps"] * classic["step_ms"])
        cells = [str(steps), f"{steps / classic['steps']:.0%}", f"{time_of:.0%}"]
    ends = [
        f"{result['loss']:.4f} after {result['steps']} x {result['step_ms']:.0f} ms"
        for result in (classic, fast)
    ]
    return [size, seed, *ends, *cells]


def summarize(losses: list[float]) -> list[str]:
    """Mean and all of them."""
    return [f"{statistics.mean(losses):.4f}", " ".join(f"{x:.4f}" for x in losses)]


def work(task: str, **arguments):
    """In a worker."""
    return {"prepare": prepare, "train": train}[task](**arguments)


def prepare(folder: str, corpus: str, tokenizer: str) -> None:
    """Tokenize the corpus."""
    from keras_gpt import data, runs

    vocab_size = 2048 if tokenizer == "byte_pair" else None
    trained = runs.train_tokenizer(tokenizer, corpus, vocab_size)
    data.prepare(corpus, folder, trained, validation_fraction=0.1, progress=False)


def train(
    folder: str,
    model: dict,
    size: str,
    seed: int,
    steps: int,
    batch_size: int,
    recipe: dict,
    fast: bool,
    validations: int,
    validation_batches: int | None,
    without: str | None = None,
    limit: float | None = None,
) -> dict:
    """Train and validate on the way."""
    import keras

    import keras_gpt

    class Clock(keras.callbacks.Callback):
        """Times of steps, each done once its loss is read."""

        times = ()

        def on_train_batch_begin(self, batch, logs=None):
            self.start = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])
            self.times += (time.perf_counter() - self.start,)

    instead, fields = ABLATIONS[without] if without else ({}, {})
    width, num_layers, num_heads = SIZES[size]
    fields = {
        **(keras_gpt.FAST_ARCHITECTURE if fast and fields is not None else {}),
        "embedding_dimension": width,
        "num_layers": num_layers,
        "num_heads": num_heads,
        **(fields or {}),
    }
    keras.utils.set_random_seed(seed)
    gpt = keras_gpt.GPT(keras_gpt.GPTConfig.from_preset(model["preset"], **fields))
    every = max(1, steps // validations)
    keras_gpt.training.compile_model(
        gpt,
        recipe="fast" if fast else "classic",
        total_steps=steps,
        warmup_steps=min(100, steps // 10),
        **recipe,
        **instead,
    )
    length = gpt.config.context_length
    batches = keras_gpt.data.load_batches(folder, "train", batch_size, length, seed)
    validation = keras_gpt.data.load_batches(
        folder, "val", batch_size, length, order="sequential"
    )
    clock = Clock()
    history = gpt.fit(
        batches,
        epochs=steps // every,
        steps_per_epoch=every,
        validation_data=validation,
        validation_steps=validation_batches or len(validation),
        callbacks=[clock],
        shuffle=False,
        verbose=0,
    )
    losses = history.history["val_loss"]
    reached = [every * (i + 1) for i, x in enumerate(losses) if limit and x <= limit]
    return {
        "loss": losses[-1],
        "steps": steps // every * every,
        "step_ms": 1000 * statistics.median(clock.times),
        "reached": reached[0] if reached else None,
    }


if __name__ == "__main__":
    if not answer_worker(work):
        sys.exit(main())
