"""One training run over 1, 2, 4 and 8 devices with JAX: the same losses, less memory.

The devices are one processor that JAX is made to see as several, so times mean nothing.
Each row trains the same model on the same batches of sequences with unequal numbers of
counted tokens, and is compared with the first, of one device. Exits with 1 if a loss
differs by more than 1e-5, or if a device holds more than 1.2 / N of what is to be cut.
"""

import argparse
import os
import sys

from common import (
    answer_worker,
    describe_machine,
    print_table,
    run_worker,
)

# What is given as `devices`: how many parts weights and optimizer state are cut into
MESHES = {
    None: 1,
    "data:2": 1,
    "data:4": 1,
    "data:8": 1,
    "fsdp:2": 2,
    "fsdp:4": 4,
    "fsdp:8": 8,
    "data:2,model:2": 2,
    "fsdp:2,model:2": 4,
}


def main() -> int:
    """Train over each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    print(describe_machine(setting=f"{arguments.steps} steps, {arguments.width} wide"))
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    rows, is_right = [], True
    first = whole = None
    for devices, parts in MESHES.items():
        losses, held = run_worker(
            __file__,
            "jax",
            devices=devices,
            steps=arguments.steps,
            width=arguments.width,
        )
        first, whole = first or losses, whole or held
        gap = max(abs(a - b) for a, b in zip(losses, first, strict=True))
        is_right &= gap <= 1e-5 and held * parts <= 1.2 * whole
        share = f"{held / whole:.3f} = {held / whole * parts:.2f} / {parts}"
        rows.append([devices or "one", f"{gap:.1e}", f"{held / 1e6:.2f}", share])
    print_table(
        ["devices", "largest difference of a loss", "MB on each", "of one's"], rows
    )
    return 0 if is_right else 1


def work(devices, steps, width):
    """In a worker: the loss of each step, and bytes of state on the first device."""
    import contextlib

    import keras
    import numpy as np

    import keras_gpt

    spread = contextlib.nullcontext()
    if devices is not None:
        spread = keras_gpt.training.make_distribution(devices).scope()
    with spread:
        keras.utils.set_random_seed(0)
        config = keras_gpt.GPTConfig(
            vocab_size=65,
            context_length=64,
            embedding_dimension=width,
            num_layers=2,
            num_heads=4,
        )
        model = keras_gpt.GPT(config)
        keras_gpt.training.compile_model(model, 1e-3, total_steps=steps)
        generator = np.random.default_rng(0)
        losses = []
        for _ in range(steps):
            start = generator.integers(65, size=(16, 1))
            ids = (start + np.arange(65) * generator.integers(1, 4, size=(16, 1))) % 65
            counted = np.arange(64) < generator.integers(2, 65, size=(16, 1))
            losses.append(
                float(
                    model.train_on_batch(
                        ids[:, :-1], ids[:, 1:], counted.astype("float32")
                    )
                )
            )
            model.reset_metrics()
    variables = [*model.variables, *model.optimizer.variables]
    parts = [variable.value.addressable_shards[0] for variable in variables]
    return losses, sum(part.data.nbytes for part in parts)


if __name__ == "__main__":
    sys.exit(0 if answer_worker(work) else main())
