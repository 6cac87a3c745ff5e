"""Eight adapters over one base, each for a row of a batch, beside the base alone.

SmolLM2-135M, float32, greedy: 8 prompts, of which each has its own adapter of rank 8
over all matrices of all blocks, with random values. Both take turns; the median of the
repeats counts, and compilation isn't in it. Then each row is written anew by the base
with its adapter merged into the weights. Exits with 1 if an id differs.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import (
    answer_worker,
    describe_machine,
    make_parser,
    make_prompts,
    print_table,
    run_worker,
)

NUM_ADAPTERS = 8
RANK = 8
SCALE = 0.02  # of the matrices that start from zeros: texts change, and stay texts


def main() -> int:
    """Measure on each backend, print the table, return the exit status."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64, help="new ones of each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--no-merged", dest="merged", action="store_false", help="only the speed"
    )
    arguments = parser.parse_args()
    setting = (
        f"SmolLM2-135M, float32, greedy, {NUM_ADAPTERS} prompts of 24 tokens and "
        f"{arguments.tokens} new ones each, {NUM_ADAPTERS} adapters of rank {RANK}; "
        f"median of {arguments.repeats} turns"
    )
    print(describe_machine(setting=setting))
    rows, all_equal = [], True
    for backend in arguments.backends:
        options = {k: v for k, v in vars(arguments).items() if k != "backends"}
        found = run_worker(__file__, backend, **options)
        base, mixed = found["speeds"]
        merged = f"{found['equal']} of {NUM_ADAPTERS}" if arguments.merged else "-"
        all_equal = all_equal and found["equal"] in (None, NUM_ADAPTERS)
        cells = f"{base:.0f}", f"{mixed:.0f}", f"{mixed / base:.2f}"
        rows.append([backend, *cells, f"{found['changed']} of {NUM_ADAPTERS}", merged])
    columns = ["tokens/s", "base alone", "mixed", "of the base", "unlike the base's"]
    print_table([*columns, "equal to merged"], rows)
    return 0 if all_equal else 1


def measure(tokens: int, repeats: int, merged: bool) -> dict:
    """In a worker: both speeds, and how many rows are as they should be."""
    import keras_gpt
    from keras_gpt import training

    lm = keras_gpt.LanguageModel.from_pretrained("smollm2")
    with tempfile.TemporaryDirectory() as path:
        folders = {f"a{i}": Path(path) / f"a{i}" for i in range(NUM_ADAPTERS)}
        write_adapters(lm.model, folders)
        several = keras_gpt.GPT(lm.model.config, initial_weights=False)
        several.set_weights(lm.model.get_weights())
        training.load_adapters(several, folders)
        prompts = make_prompts(NUM_ADAPTERS, 24)
        options = {"max_new_tokens": tokens, "temperature": 0}
        times, names = ([], []), list(folders)
        for _ in range(1 + repeats):
            start = time.perf_counter()
            plain = keras_gpt.generate(lm.model, prompts, **options)
            middle = time.perf_counter()
            mixed = keras_gpt.generate(several, prompts, adapter=names, **options)
            times[0].append(middle - start)
            times[1].append(time.perf_counter() - middle)
        equal = None
        if merged:
            weights, equal = lm.model.get_weights(), 0
            for i, folder in enumerate(folders.values()):
                training.load_adapter(lm.model, folder)
                training.merge_lora(lm.model)
                found = keras_gpt.generate(lm.model, prompts, **options)
                equal += found[i] == mixed[i]
                lm.model.set_weights(weights)
    seconds = [statistics.median(each[1:]) for each in times]  # the first compiles
    return {
        "speeds": [tokens * NUM_ADAPTERS / s for s in seconds],
        "changed": sum(a != b for a, b in zip(plain, mixed, strict=True)),
        "equal": equal,
    }


def write_adapters(model, folders):
    """Write adapters with random values, as if they had been trained."""
    import keras
    import numpy as np

    from keras_gpt import training

    for seed, folder in enumerate(folders.values()):
        keras.utils.set_random_seed(seed)
        random = np.random.default_rng(seed)
        training.enable_lora(model, RANK)
        for adapter in model.adapters.layers:
            adapter.up.assign(random.normal(scale=SCALE, size=adapter.up.shape))
        training.save_adapter(model, folder)
        training.remove_lora(model)


if __name__ == "__main__":
    if not answer_worker(measure):
        sys.exit(main())
