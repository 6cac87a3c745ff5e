"""Runs that are killed at random moments must end as one that was never killed.

On each backend a run with dropout, accumulated batches, averaged weights and early
stopping is killed by SIGKILL while it starts, trains, validates and saves, and goes on
with `resume`; it saves its state at every step, so that many moments are amid a save.
Its last two states, best model, losses and result are compared, bit for bit, with those
of a run that was left alone. Exits with 1 if any differs.
"""

import contextlib
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import describe_machine, environment, make_parser, print_table

KILLS = {"torch": 50, "jax": 15, "tensorflow": 15}
LONGEST = 2.0  # seconds of training before a kill
AT_START = 0.2  # of all kills, before it has trained
AMID_A_WRITE = 0.5  # of the others, when a file is begun
MEASURED = {"tokens_per_second", "utilisation"}  # columns of the log
RUN = {
    "tokenizer": "characters",
    "model": {
        "embedding_dimension": 64,
        "num_layers": 2,
        "num_heads": 2,
        "context_length": 32,
        "dropout_rate": 0.2,
    },
    "steps": 2000,
    "evaluate_every": 10,
    "evaluation_batches": 4,
    "save_every": 1,
    "early_stopping": 3,
    "accumulation_steps": 2,
    "ema_momentum": 0.5,
    "learning_rate": 3e-2,
    "batch_size": 4,
    "sample_tokens": 2,
}


def main() -> int:
    """Kill on each backend, print the table, return the exit status."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--kills", type=int, help=f"on each backend (default: {KILLS})", metavar="N"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    setting = ", ".join(f"{name}={value}" for name, value in RUN.items())
    print(describe_machine(setting=setting))
    columns = ["backend", "steps of a run", "kills", "amid a write", "runs", "differ"]
    rows = []
    for backend in arguments.backends:
        kills = KILLS[backend] if arguments.kills is None else arguments.kills
        rows.append([backend, *kill(backend, kills, random.Random(arguments.seed))])
    print_table(columns, rows)
    return 0 if all(row[-1] == "none" for row in rows) else 1


def kill(backend: str, kills: int, moments: random.Random) -> list:
    """Kill runs so many times in all; returns the cells of a row."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lines = (f"{i} bottles of beer, {i * i % 97} gone.\n" for i in range(300))
        (folder / "corpus.txt").write_text("".join(lines))
        whole = folder / "whole"
        process = start(backend, whole)
        finish(process)
        done, amid, differences, start_seconds, number = 0, 0, [], 1.0, 0
        while done < kills or number == 0:
            number += 1
            output = folder / f"run-{number}"
            while True:
                process, begun = start(backend, output), time.monotonic()
                if done == kills:
                    finish(process)
                elif moments.random() < AT_START:
                    wait(process, moments.uniform(0, start_seconds))
                else:
                    before = saved(output)
                    while process.poll() is None and saved(output) == before:
                        time.sleep(0.001)
                    start_seconds = time.monotonic() - begun
                    wait(process, moments.uniform(0, LONGEST))
                    if moments.random() < AMID_A_WRITE:
                        while process.poll() is None and not writes(output):
                            time.sleep(0.0002)
                        wait(process, moments.uniform(0, 0.005))
                if process.poll() is not None:
                    finish(process)
                    break
                process.kill()
                process.communicate()
                done += 1
                amid += writes(output)
                print(f"... {backend}: {done} kills", file=sys.stderr)
            found = compare(output, whole)
            said = "differs" if found else "is equal"
            print(f"... {backend}: {output.name} {said}", file=sys.stderr)
            differences += found
        steps = read_state(whole / "last.npz")["step"]
    return [int(steps), done, amid, number, "; ".join(differences) or "none"]


def start(backend, output):
    """Begin a run in a process, or go on with it where it has begun."""
    fields = {**RUN, "output": str(output), "corpus": f"{output.parent}/corpus.txt"}
    if backend == "tensorflow":
        fields["jit_compile"] = False  # XLA compiles for longer than all else takes
    command = [sys.executable, __file__, "--worker", json.dumps(fields)]
    return subprocess.Popen(
        command,
        env=environment(backend),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def work(fields):
    """What the process does."""
    from keras_gpt import runs

    resume = Path(fields["output"], runs.CONFIG_FILE).is_file()
    runs.train(runs.RunConfig(**fields), resume=resume)


def wait(process, seconds):
    """Wait, at most until the process ends."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def finish(process):
    """Let a process end, which it must do well."""
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{errors.decode()}It ended with {process.returncode}.")


def saved(output):
    """When the last state was written, or `None`."""
    with contextlib.suppress(FileNotFoundError):
        return (output / "last.npz").stat().st_mtime_ns


def writes(output):
    """Whether a file is being written, or was when the process was killed."""
    return output.is_dir() and any(".partial" in path.name for path in output.iterdir())


def compare(output, whole):
    """What differs between two runs' folders."""
    differ = []
    for name in ("last.npz", "previous.npz"):
        ours, theirs = read_state(output / name), read_state(whole / name)
        if ours.keys() != theirs.keys() or any(
            ours[key].tobytes() != theirs[key].tobytes() for key in ours
        ):
            differ.append(name)
    for name, read in {
        "model.weights.h5": Path.read_bytes,
        "steps.csv": Path.read_bytes,
        "log.csv": read_log,
        "result.json": read_result,
    }.items():
        if read(output / name) != read(whole / name):
            differ.append(name)
    if writes(output):
        differ.append("what a killed writer left")
    return [f"{output.name}: {name}" for name in differ]


def read_state(path):
    """The arrays of a state."""
    with np.load(path) as arrays:
        return dict(arrays)


def read_log(path):
    """The rows of a log, without what a clock measured."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]


def read_result(path):
    """A result without what a clock measured."""
    return {**json.loads(path.read_text()), "seconds": None}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(json.loads(sys.argv[2]))
    else:
        sys.exit(main())
