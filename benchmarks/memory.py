"""Peak memory and time of a training step: the loss by chunks, and remat.

Each row is a fresh process that trains on random ids with `train_on_batch`; its peak is
that of the process less what it held before the first step (weights; the optimizer's
state comes with that step). The time is the median of the steps behind the first two.
"""

import gc
import resource
import statistics
import sys
import time

from common import (
    answer_worker,
    describe_machine,
    make_parser,
    print_table,
    run_worker,
)

# Name: whether the loss takes logits, and whether blocks are computed twice
WAYS = {
    "logits": (True, False),
    "chunks": (False, False),
    "logits, remat": (True, True),
    "chunks, remat": (False, True),
}


def main() -> int:
    """Measure each way on each backend, print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--preset", default="gpt2", help="the architecture")
    parser.add_argument("--num-layers", type=int, help="other than the preset's")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    sizes = {
        "preset": arguments.preset,
        "num_layers": arguments.num_layers,
        "batch_size": arguments.batch_size,
        "length": arguments.length,
        "dtype": arguments.dtype,
        "steps": arguments.steps,
    }
    print(describe_machine(setting=", ".join(f"{k} {v}" for k, v in sizes.items())))
    rows = []
    for backend in arguments.backends:
        first = None
        for way in arguments.ways:
            peak, seconds = run_worker(__file__, backend, way=way, **sizes)
            first = first or (peak, seconds)
            rows.append(
                [
                    backend,
                    way,
                    f"{peak / 1e9:.2f}",
                    f"{peak / first[0]:.2f}",
                    f"{seconds:.2f}",
                    f"{seconds / first[1]:.2f}",
                ]
            )
    print_table(
        ["backend", "way", "peak, GB", "of the first", "s a step", "of the first"], rows
    )
    return 0


def work(way, preset, num_layers, batch_size, length, dtype, steps):
    """In a worker: peak memory in bytes, and seconds a step."""
    import numpy as np

    import keras_gpt

    class WithLogits(keras_gpt.GPT):
        """A subclass, which is always given its logits."""

    takes_logits, remat = WAYS[way]
    options = {} if num_layers is None else {"num_layers": num_layers}
    config = keras_gpt.GPTConfig.from_preset(preset, context_length=length, **options)
    model = (WithLogits if takes_logits else keras_gpt.GPT)(config, dtype=dtype)
    keras_gpt.training.compile_model(model, 1e-4, remat=remat)
    ids = np.random.default_rng(0).integers(
        config.vocab_size, size=(batch_size, length + 1), dtype="int32"
    )
    gc.collect()
    before, times = peak_memory(), []
    for _ in range(steps):
        start = time.perf_counter()
        float(model.train_on_batch(ids[:, :-1], ids[:, 1:]))
        times.append(time.perf_counter() - start)
    return peak_memory() - before, statistics.median(times[2:] or times[-1:])


def peak_memory() -> int:
    """Bytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(0 if answer_worker(work) else main())
