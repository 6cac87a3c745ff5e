"""Peak memory and time of a training step: the loss by chunks, and remat; estimates.

Each row is a fresh process that trains on random ids with `train_on_batch`; its peak is
that of the process less what it held before the first step (weights; the optimizer's
state comes with that step). The time is the median of the steps behind the first two.

With --estimates: what `runs.estimate_memory` says beside what a step takes, of five
configurations; there a process's peak is less what it held before the model was made.
"""

import gc
import os
import resource
import statistics
import sys
import time
from pathlib import Path

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


_SMALL = {"vocab_size": 5000, "embedding_dimension": 384, "num_heads": 6}
_LLAMA = {
    "position_embedding": "rotary",
    "normalization": "rms_norm",
    "activation": "swiglu",
    "use_bias": False,
}
# Name: fields of the model, rows, tokens in a row, and how it is trained
ESTIMATED = {
    "8 layers": ({**_SMALL, "num_layers": 8}, 8, 256, {}),
    "8 layers, remat": ({**_SMALL, "num_layers": 8}, 8, 256, {"remat": True}),
    "8 layers, as Llama, bfloat16": (
        {**_SMALL, **_LLAMA, "num_layers": 8},
        *(8, 256, {"dtype": "mixed_bfloat16"}),
    ),
    "4 layers, dropout": (
        {**_SMALL, "num_layers": 4, "dropout_rate": 0.1},
        *(4, 512, {}),
    ),
    "2 layers, 50,257 kinds (chunks)": (
        {**_SMALL, "num_layers": 2, "vocab_size": 50257},
        *(8, 256, {}),
    ),
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
    parser.add_argument("--estimates", action="store_true", help="compare with these")
    arguments = parser.parse_args()
    if arguments.estimates:
        return compare(arguments.backends)
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


def compare(backends) -> int:
    """Print estimates beside what is measured; 1 if one is off by more than 15%."""
    # or freed pieces of up to 32 MB stay with the process, a quarter on top
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    print(describe_machine(malloc=os.environ["MALLOC_MMAP_THRESHOLD_"]))
    rows, worst = [], 0.0
    for backend in backends:
        for name in ESTIMATED:
            measured, estimated = run_worker(__file__, backend, name=name)
            ratio = estimated / measured
            worst = max(worst, abs(ratio - 1)) if backend != "tensorflow" else worst
            figures = [
                f"{measured / 1e9:.2f}",
                f"{estimated / 1e9:.2f}",
                f"{ratio:.2f}",
            ]
            rows.append([backend, name, *figures])
    print_table(["backend", "step", "measured, GB", "estimated, GB", "ratio"], rows)
    return int(worst > 0.15)


def work(**arguments):
    """In a worker: either."""
    if "name" in arguments:
        return estimate(**arguments)
    return measure(**arguments)


def estimate(name):
    """Bytes that steps take at most, measured and estimated."""
    import keras_gpt

    fields, rows, length, options = ESTIMATED[name]
    # what a backend loads and compiles by, before anything is counted
    tiny = {**fields, "vocab_size": 64, "embedding_dimension": 48, "num_layers": 1}
    _step(keras_gpt.GPTConfig(context_length=8, **tiny), 2, 8, **options)
    gc.collect()
    before = held_memory()
    config = keras_gpt.GPTConfig(context_length=length, **fields)
    _step(config, rows, length, steps=2, **options)
    estimated = keras_gpt.runs.estimate_memory(config, rows, length, **options)
    return peak_memory() - before, estimated.peak


def _step(config, rows, length, *, steps=1, dtype="float32", remat=False):
    import numpy as np

    import keras_gpt

    model = keras_gpt.GPT(config, dtype=dtype)
    keras_gpt.training.compile_model(model, 1e-4, remat=remat)
    ids = np.random.default_rng(0).integers(
        config.vocab_size, size=(rows, length + 1), dtype="int32"
    )
    for _ in range(steps):
        float(model.train_on_batch(ids[:, :-1], ids[:, 1:]))


def measure(way, preset, num_layers, batch_size, length, dtype, steps):
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


def held_memory() -> int:
    """Bytes that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_memory() -> int:
    """Bytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(0 if answer_worker(work) else main())
