"""Time of a training step against nanoGPT's, in one run.

Each measurement is a fresh process with as many threads; nanoGPT's is repeated before
each of ours, and the ratio is taken to that one, so that a machine that becomes slower
or faster meanwhile doesn't matter. nanoGPT: its model and optimizer, the step as in its
`train.py`, batches included. Ours: `fit` with the grain batches, compiled by
`keras_gpt.training.compile_model`.

Time is taken over blocks of steps, because some backends return before a step is done.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nanogpt
from common import (
    answer_worker,
    describe_commit,
    describe_machine,
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


def main() -> int:
    """Measure in turns, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="a text file")
    parser.add_argument("--nanogpt", required=True, help="folder of a checkout")
    parser.add_argument("--preset", default="char_cpu", help="GPT-2's architecture")
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument(
        "--contestants",
        nargs="+",
        metavar="BACKEND[:SETTING]",
        default=["jax", "tensorflow", "tensorflow:nojit", "torch"],
        help="backends as compile_model sets them up, or with jit_compile=True (:jit) "
        "or False (:nojit); torch:jit compiles for a minute",
    )
    parser.add_argument("--dtype", default="float32", help="of ours")
    parser.add_argument("--block-steps", type=int, default=25)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(arguments.threads)))
    print(
        describe_machine(
            setting=f"{arguments.preset}, batch {arguments.batch_size}, "
            f"{arguments.dtype}, {arguments.threads} threads, {arguments.rounds} "
            f"rounds, median of {arguments.blocks} blocks of {arguments.block_steps} "
            "steps",
            peer=f"nanoGPT, {describe_commit(arguments.nanogpt)}, float32",
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        print_table(
            ["", "jit_compile", "ms a step", "nanoGPT's beside", "ratio (its range)"],
            measure_all(folder, arguments),
        )
    return 0


def measure_all(folder: str, arguments) -> list[list[str]]:
    """Rows of the table."""
    common = {
        "task": "prepare",
        "folder": folder,
        "preset": arguments.preset,
        "corpus": arguments.corpus,
    }
    fields = run_worker(__file__, None, **common)
    if fields["normalization"] != "layer_norm" or fields["num_kv_heads"] is not None:
        sys.exit(f"nanoGPT has no model like {arguments.preset}: name one of GPT-2's.")
    common = {
        "fields": fields,
        "batch_size": arguments.batch_size,
        "steps": arguments.block_steps,
        "blocks": arguments.blocks,
    }
    peer = {
        "task": "nanogpt",
        "checkout": str(Path(arguments.nanogpt).resolve()),
        "train_bin": f"{folder}/train.bin",
        **common,
    }
    ours = {"task": "ours", "folder": folder, "dtype": arguments.dtype, **common}
    pairs, jit_compile = {}, {}  # by contestant: times of ours and nanoGPT's
    for _ in range(arguments.rounds):
        for contestant in arguments.contestants:
            backend, _, setting = contestant.partition(":")
            theirs = statistics.median(run_worker(__file__, None, **peer))
            result = run_worker(
                __file__, backend, jit_compile=SETTINGS[setting], **ours
            )
            pair = (statistics.median(result["times"]), theirs)
            pairs.setdefault(contestant, []).append(pair)
            jit_compile[contestant] = result["jit_compile"]
    rows = []
    for contestant, rounds in pairs.items():
        ratios = [mine / theirs for mine, theirs in rounds]
        rows.append(
            [
                f"keras_gpt, {contestant}",
                jit_compile[contestant],
                f"{statistics.median(mine for mine, _ in rounds):.1f}",
                f"{statistics.median(theirs for _, theirs in rounds):.1f}",
                f"{statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})",
            ]
        )
    return rows


def work(task: str, **arguments):
    """In a worker: prepare, or measure one contestant."""
    tasks = {
        "prepare": prepare,
        "ours": measure_ours,
        "nanogpt": nanogpt.measure_blocks,
    }
    return tasks[task](**arguments)


def prepare(folder: str, corpus: str, preset: str) -> dict:
    """Tokenize the corpus for both; return the fields of the model."""
    import numpy as np

    import keras_gpt

    documents = keras_gpt.data.read_documents(corpus)
    tokenizer = keras_gpt.CharacterTokenizer.train(documents)
    keras_gpt.data.prepare(corpus, f"{folder}/data", tokenizer, progress=False)
    tokens = keras_gpt.data.TokenDataset(f"{folder}/data", "train")
    np.asarray(tokens[0 : len(tokens)], np.uint16).tofile(f"{folder}/train.bin")
    fields = keras_gpt.GPTConfig.from_preset(preset).to_dict()
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
    import keras

    import keras_gpt

    class Clock(keras.callbacks.Callback):
        """Times of epochs; at the end of one Keras reads the loss, so all is done."""

        def __init__(self):
            super().__init__()
            self.times = []

        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.times.append(1000 * (time.perf_counter() - self.start) / steps)

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
    clock = Clock()
    model.fit(
        batches,
        epochs=1 + blocks,
        steps_per_epoch=steps,
        callbacks=[clock],
        shuffle=False,
        verbose=0,
    )
    return {"times": clock.times[1:], "jit_compile": bool(model.jit_compile)}


if __name__ == "__main__":
    if not answer_worker(work):
        sys.exit(main())
