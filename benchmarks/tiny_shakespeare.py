"""Train on Tiny Shakespeare from the command line, on each backend and by nanoGPT.

Runs `keras-gpt train` with a configuration of `examples/`, then `keras-gpt evaluate`;
with --nanogpt also nanoGPT's `train.py`, as its README has it for CPUs, on the same
corpus, and evaluates its checkpoint on the same windows: all of the validation text,
without overlap.
"""

import csv
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nanogpt
from common import (
    ROOT,
    describe_commit,
    describe_machine,
    environment,
    make_parser,
    print_table,
    run,
)

KERAS_GPT = [sys.executable, "-c", "from keras_gpt_cli import main; main()"]
NANOGPT_OPTIONS = {
    "device": "cpu",
    "compile": False,
    "eval_iters": 20,
    "log_interval": 1,
    "block_size": 64,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "max_iters": 2000,
    "lr_decay_iters": 2000,
    "dropout": 0.0,
}


def main() -> int:
    """Train, evaluate, print the table, return the exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--corpus", required=True, help="the text file")
    parser.add_argument(
        "--config", default=str(ROOT / "examples" / "shakespeare_char_cpu.yaml")
    )
    parser.add_argument("--nanogpt", help="folder of a checkout, to run it too")
    parser.add_argument("--steps", type=int, help="fewer steps, to try this script")
    parser.add_argument("--output", help="folder that keeps the runs")
    parser.add_argument(
        "--limit", type=float, default=1.90, help="highest loss that is a success"
    )
    arguments = parser.parse_args()
    peer = {}
    if arguments.nanogpt:
        peer["peer"] = f"nanoGPT, {describe_commit(arguments.nanogpt)}"
    print(
        describe_machine(
            corpus=Path(arguments.corpus).name,
            config=Path(arguments.config).name
            + (f", but {arguments.steps} steps" if arguments.steps else ""),
            **peer,
        )
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.output or temporary)
        rows, losses, counts = [], [], []
        for backend in arguments.backends:
            row, loss, count = run_ours(backend, folder, arguments)
            rows.append(row)
            losses.append(loss)
            counts.append(count)
        if arguments.nanogpt:
            row, count = run_nanogpt(Path(temporary), arguments)
            rows.append(row)
            counts.append(count)
    if len(set(counts)) > 1:
        sys.exit(f"The validation tokens differ: {counts}.")
    print_table(
        ["", "validation loss, all windows", "seconds in all", "ms a step"], rows
    )
    print(f"\n{counts[0]:,} validation tokens were predicted by each.")
    return 0 if max(losses) <= arguments.limit else 1


def run_ours(backend: str, folder: Path, arguments) -> tuple[list[str], float, int]:
    """Cells of the table, the loss, and the number of tokens it is over."""
    output = folder / backend
    changes = []
    if arguments.steps:
        few = arguments.steps
        changes = [f"steps={few}", f"evaluate_every={few}", f"warmup_steps={few // 10}"]
    source = ["--config", arguments.config, "--corpus", arguments.corpus]
    start = time.perf_counter()
    run(
        [*KERAS_GPT, "train", *changes, *source, "--output", output],
        env=environment(backend),
    )
    seconds = time.perf_counter() - start
    result = run([*KERAS_GPT, "evaluate", output], env=environment(backend))
    loss = float(re.search(r"loss: +([\d.]+)", result)[1])
    count = int(re.search(r"tokens: +([\d,]+)", result)[1].replace(",", ""))
    model = json.loads((output / "config.json").read_text(encoding="utf-8"))["model"]
    batch_size = int(
        re.search(r"^batch_size: (\d+)", (output / "run.yaml").read_text(), re.M)[1]
    )
    with (output / "log.csv").open(encoding="utf-8") as file:
        speeds = [float(row["tokens_per_second"]) for row in csv.DictReader(file)]
    tokens = batch_size * model["context_length"]
    step_ms = 1000 * tokens / statistics.median(speeds)
    row = [f"keras_gpt, {backend}", f"{loss:.4f}", f"{seconds:.0f}", f"{step_ms:.1f}"]
    return row, loss, count


def run_nanogpt(folder: Path, arguments) -> tuple[list[str], int]:
    """Cells of the table and the number of tokens that the loss is over."""
    options = dict(NANOGPT_OPTIONS)
    if arguments.steps:
        few = arguments.steps
        options.update(max_iters=few, lr_decay_iters=few, eval_interval=few)
        options.update(warmup_iters=few // 10)
    copy = nanogpt.copy_with_corpus(arguments.nanogpt, arguments.corpus, folder)
    result = nanogpt.train(copy, options)
    loss, count = nanogpt.evaluate(copy)
    row = [
        f"nanoGPT (its own estimate at the end: {result['estimate']:.4f})",
        f"{loss:.4f}",
        f"{result['seconds']:.0f}",
        f"{result['step_ms']:.1f}",
    ]
    return row, count


if __name__ == "__main__":
    sys.exit(main())
