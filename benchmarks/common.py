"""What the benchmarks share: the machine, fresh processes by backend, tables."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ("jax", "tensorflow", "torch")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that all benchmarks by backend have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--backends", nargs="*", choices=BACKENDS, default=BACKENDS)
    return parser


def environment(backend: str | None = None) -> dict[str, str]:
    """Environment variables of a process that uses this checkout on a backend."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "TF_CPP_MIN_LOG_LEVEL": "3",  # only errors
    }
    if backend is not None:
        variables["KERAS_BACKEND"] = backend
    return variables


def run(command: list, **options) -> str:
    """Run a command, say which on standard error, and return its standard output."""
    print("...", *(str(part)[:60] for part in command[1:]), file=sys.stderr)
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}It ended with {done.returncode}.")
    return done.stdout


def run_worker(script: str, backend: str | None, **arguments):
    """Call a script's worker function in a fresh process; see `answer_worker`.

    Args:
        script: Its `__file__`.
        backend: Of Keras in that process.
        **arguments: Of the function, ready for JSON.

    Returns:
        The function's result.
    """
    command = [sys.executable, script, "--worker", json.dumps(arguments)]
    return json.loads(run(command, env=environment(backend)).splitlines()[-1])


def answer_worker(function) -> bool:
    """Whether this is a worker's process; if so, call the function, print its result.

    Args:
        function: Takes the arguments of `run_worker`, returns what JSON can hold.
    """
    if sys.argv[1:2] != ["--worker"]:
        return False
    print(json.dumps(function(**json.loads(sys.argv[2]))))
    return True


def describe_machine(**more) -> str:
    """Lines that say where the figures come from, and what else the caller names."""
    cpu = Path("/proc/cpuinfo")
    names = cpu.read_text().splitlines() if cpu.is_file() else []
    name = next((line for line in names if line.startswith("model name")), "")
    packages = ("keras", "tensorflow", "jax", "torch", "numpy")
    installed = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    versions = [f"{p} {metadata.version(p)}" for p in packages if p in installed]
    lines = {
        "machine": f"{count_cores()} cores, "
        f"{name.partition(': ')[2] or platform.processor()}, "
        f"{platform.system()} {platform.release()}",
        "gpu": _first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
        "keras_gpt": describe_commit(ROOT),
        "load before": f"{os.getloadavg()[0]:.2f}",
        **more,
    }
    return "\n".join(f"- {key}: {value}" for key, value in lines.items()) + "\n"


def count_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def describe_commit(folder: str | Path) -> str:
    """The commit of a checkout, and whether it was changed since."""
    commit = _first_line("git", "-C", str(folder), "rev-parse", "--short", "HEAD")
    changed = _first_line("git", "-C", str(folder), "status", "--porcelain", "-uno")
    return f"commit {commit}" + ("" if changed == "none" else ", changed")


def make_clock():
    """A callback of `fit` whose `times` are the seconds of each epoch.

    At the end of one Keras reads the loss, so all is done.
    """
    import keras

    class Clock(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.times = []

        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.times.append(time.perf_counter() - self.start)

    return Clock()


def make_prompts(batch_size: int, length: int) -> list[list[int]]:
    """Prompts of SmolLM2's token ids, each another."""
    return [
        [(977 * row + 31 * i) % 40_000 + 100 for i in range(length)]
        for row in range(batch_size)
    ]


def print_table(columns: list[str], rows: list[list]) -> None:
    """Print a Markdown table."""
    texts = [columns, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    texts.insert(1, ["-" * width for width in widths])
    for row in texts:
        cells = (cell.ljust(w) for cell, w in zip(row, widths, strict=True))
        print(f"| {' | '.join(cells)} |")


def _first_line(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return (done.stdout.splitlines() or ["none"])[0]
