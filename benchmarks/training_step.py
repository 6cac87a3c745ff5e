"""Time of a training step against nanoGPT's, in one run.

Each measurement is a fresh process with as many threads and with large pages of memory,
as `keras-gpt train` asks for them; nanoGPT has them too. In each round nanoGPT as it
ships, in float32, comes first, then nanoGPT under a bfloat16 autocast, then ours; the
ratio is nanoGPT's time over the contestant's, each of its best block. nanoGPT: its
model and optimizer, the step as in its `train.py`, batches included. Ours: `fit` with
the grain batches, compiled by `keras_gpt.training.compile_model`.

Time is taken over blocks of steps, because some backends return before a step is done.
All sizes read characters: what a step costs doesn't depend on which ids it reads.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nanogpt
from common import (
    answer_worker,
    count_cores,
    describe_commit,
    describe_machine,
    make_clock,
    print_table,
    run_worker,
)

THREAD_VARIABLES = (
    "MKL_NUM_THREADS",
    "NPROC",  # XLA on CPU
    "OMP_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)
SETTINGS = {"": None, "jit": True, "nojit": False}
# preset, batch size, steps in a block, and fields that differ from the preset's
SIZES = {
    "0.8M": ("char_cpu", 12, 40, {}),
    "10.7M": ("char_gpu", 16, 3, {}),
    "124M": ("gpt2", 2, 1, {"vocab_size": 50304, "context_length": 512}),
}
CONTESTANTS = {
    "0.8M": [
        *("jax:float32", "tensorflow:float32", "torch:float32"),
        *("jax:bfloat16", "torch:bfloat16"),
    ],
    "10.7M": ["jax:float32", "jax:bfloat16", "tensorflow:bfloat16", "torch:bfloat16"],
    "124M": ["jax:bfloat16", "tensorflow:bfloat16", "torch:bfloat16"],
}


def main() -> int:
    """Measure in turns, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="a text file")
    parser.add_argument("--nanogpt", required=True, help="folder of a checkout")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument(
        "--contestants",
        nargs="+",
        metavar="BACKEND:DTYPE[:SETTING]",
        help="backends as compile_model sets them up, or with jit_compile=True (:jit) "
        "or False (:nojit); torch:float32:jit compiles for a minute. Defaults to what "
        "is fastest on each backend",
    )
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=count_cores())
    arguments = parser.parse_args()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(arguments.threads)))
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    print(
        describe_machine(
            setting=f"{arguments.threads} threads, {arguments.rounds} rounds, the best "
            f"of {arguments.blocks} blocks in each",
            peer=f"nanoGPT, {describe_commit(arguments.nanogpt)}",
        )
    )
    rows = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure_size(folder, size, arguments)
    print_table(["size", "contestant", "jit_compile", "ms a step", "ratio"], rows)
    return 0


def measure_size(folder: str, size: str, arguments) -> list[list[str]]:
    """Rows of the table."""
    preset, batch_size, steps, changes = SIZES[size]
    corpus = {"corpus": arguments.corpus, "preset": preset, "changes": changes}
    fields = run_worker(__file__, None, task="prepare", folder=folder, **corpus)
    common = {
        "fields": fields,
        "batch_size": batch_size,
        "steps": steps,
        "blocks": arguments.blocks,
    }
    peer = {
        "task": "nanogpt",
        "checkout": str(Path(arguments.nanogpt).resolve()),
        "train_bin": f"{folder}/train.bin",
        **common,
    }
    best, jit_compile = {}, {}  # by contestant

    def note(name, times, is_compiled=""):
        best[name] = min(best.get(name, float("inf")), *times)
        jit_compile[name] = is_compiled

    for _ in range(arguments.rounds):
        for name, autocast in (("float32", False), ("autocast", True)):
            times = run_worker(__file__, None, autocast=autocast, **peer)
            note(f"nanoGPT, {name}", times)
        for contestant in arguments.contestants or CONTESTANTS[size]:
            backend, dtype, *setting = contestant.split(":")
            result = run_worker(
                __file__,
                backend,
                task="ours",
                folder=folder,
                dtype="mixed_bfloat16" if dtype == "bfloat16" else dtype,
                jit_compile=SETTINGS[setting[0] if setting else ""],
                **common,
            )
            note(f"keras_gpt, {contestant}", **result)
    theirs = best["nanoGPT, float32"]
    return [
        [size, name, jit_compile[name], f"{time:.1f}", f"{theirs / time:.2f}"]
        for name, time in best.items()
    ]


def work(task: str, **arguments):
    """In a worker: prepare, or measure one contestant."""
    tasks = {
        "prepare": prepare,
        "ours": measure_ours,
        "nanogpt": nanogpt.measure_blocks,
    }
    return tasks[task](**arguments)


def prepare(folder: str, corpus: str, preset: str, changes: dict) -> dict:
    """Tokenize the corpus for both; return the fields of the model."""
    import numpy as np

    import keras_gpt

    documents = keras_gpt.data.read_documents(corpus)
    tokenizer = keras_gpt.CharacterTokenizer.train(documents)
    keras_gpt.data.prepare(corpus, f"{folder}/data", tokenizer, progress=False)
    tokens = keras_gpt.data.TokenDataset(f"{folder}/data", "train")
    np.asarray(tokens[0 : len(tokens)], np.uint16).tofile(f"{folder}/train.bin")
    fields = {**keras_gpt.GPTConfig.from_preset(preset).to_dict(), **changes}
    fields["vocab_size"] = max(fields["vocab_size"], tokenizer.vocab_size)
    return fields


def measure_ours(
    folder: str,
    fields: dict,
    batch_size: int,
    dtype: str,
    jit_compile: bool | None,
    steps: int,
    blocks: int,
) -> dict:
    """Milliseconds for a training step, on average over each block of `fit`."""
    import keras_gpt

    config = keras_gpt.GPTConfig.from_dict(fields)
    model = keras_gpt.GPT(config, dtype=dtype)
    keras_gpt.training.compile_model(
        model,
        1e-3,
        total_steps=10000,
        warmup_steps=100,
        beta_2=0.99,
        jit_compile=jit_compile,
    )
    batches = keras_gpt.data.load_batches(
        f"{folder}/data", "train", batch_size, config.context_length
    )
    clock = make_clock()
    model.fit(
        batches,
        epochs=1 + blocks,
        steps_per_epoch=steps,
        callbacks=[clock],
        shuffle=False,
        verbose=0,
    )
    times = [1000 * seconds / steps for seconds in clock.times[1:]]
    return {"times": times, "is_compiled": bool(model.jit_compile)}


if __name__ == "__main__":
    if not answer_worker(work):
        sys.exit(main())
