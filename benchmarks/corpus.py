"""A corpus that outgrows a machine: speed, memory and kills of `prepare`, with Ray too.

Synthetic text in files of JSON Lines, plain, compressed and Parquet, is prepared by
Ray clusters on this machine with some numbers of workers and by one thread; and by a
run that is killed by SIGKILL at random moments, each time gone on with by the next
engine. Speed is of UTF-8 bytes, from the call, and from the first tokens on, as a
cluster must start. Peak memory is of the process that writes and of the largest Ray
worker, in the first tenth of the time and in all of it. Exits with 1 if a byte differs.
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from common import describe_machine, environment, print_table

import keras_gpt

KINDS = ("jsonl", "jsonl", "jsonl.gz", "parquet")


def main() -> int:
    """Prepare, kill, compare, print the table, return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument(
        "--tokenizer", choices=["byte_pairs", "bytes"], default="byte_pairs"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 1], help="of Ray")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the text is kept, and used again; four times the size",
    )
    arguments = parser.parse_args()
    size = f"{arguments.gigabytes:g} GB in {arguments.files} files"
    print(describe_machine(setting=f"{size}, {arguments.tokenizer}"), flush=True)
    engines = [*(("ray", count) for count in arguments.workers), ("threads", 1)]
    with ExitStack() as stack:
        folder = arguments.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sentences = make_sentences()
        if not (folder / "source").is_dir():
            write_corpus(folder, sentences, arguments.gigabytes * 1e9, arguments.files)
        if arguments.tokenizer == "byte_pairs":
            train = keras_gpt.BytePairTokenizer.train
            train(sentences, 16_000, progress=False).save(folder / "tokenizer")
        rows, found = [], []

        def note(name, figures):
            found.append(read_outcome(folder))
            is_same = "yes" if found[-1] == found[0] else "NO"
            rows.append([name, *figures, is_same])
            print("...", rows[-1], file=sys.stderr, flush=True)

        for engine, workers in engines:
            run = start(folder, engine, workers)
            peaks = watch(run, folder)
            seconds = time.time() - run.started
            note(f"{engine}, {workers}", figures(folder, seconds, peaks))
            if arguments.kills and len(rows) == 1:  # at once, as all takes hours
                kill_and_go_on(folder, engines, arguments.kills, seconds)
                note(f"killed {arguments.kills} times", ["-"] * 6)
    columns = [
        "engine, workers",
        "MB/s",
        "once begun",
        "writer, first tenth",
        "writer, all",
    ]
    columns += ["a worker, first tenth", "a worker, all", "same bytes"]
    print_table(columns, rows)
    return 0 if all(outcome == found[0] for outcome in found) else 1


def make_sentences() -> list[str]:
    """Sentences of words of which some are much more frequent than others."""
    chooser = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(chooser.choices(letters, k=2 + n % 9)) for n in range(50_000)]
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    return [
        " ".join(
            chooser.choices(words, cum_weights=weights, k=chooser.randint(5, 30))
        ).capitalize()
        for _ in range(40_000)
    ]


def write_corpus(
    folder: Path, sentences: list[str], num_bytes: float, num_files: int
) -> None:
    """Write the files."""
    import pyarrow
    from pyarrow import parquet

    chooser = random.Random(1)
    (folder / "source").mkdir()
    written = 0
    for number in range(num_files):
        kind = KINDS[number % len(KINDS)]
        path = folder / "source" / f"{number:04d}.{kind}"
        left, batch, schema = num_bytes / num_files, [], {"text": pyarrow.string()}
        if kind == "parquet":
            file = parquet.ParquetWriter(path, pyarrow.schema(schema))
        else:
            is_plain = not kind.endswith(".gz")
            opened = open if is_plain else partial(gzip.open, compresslevel=1)
            file = opened(path, "wt", encoding="utf-8")
        with file:
            while left > 0:
                # of its own by its first number, as no two documents should be the same
                parts = chooser.choices(sentences, k=chooser.randint(1, 60))
                batch.append(f"{written:,}. " + ".\n".join(parts))
                left -= len(batch[-1])
                written += len(batch[-1])
                if left > 0 and len(batch) < 20_000:
                    continue
                if kind == "parquet":
                    file.write_table(pyarrow.table({"text": batch}))
                else:
                    file.writelines(
                        f'{{"text": {json.dumps(text)}}}\n' for text in batch
                    )
                batch = []


class Bytes:
    """A tokenizer that costs next to nothing, to see what all the rest does."""

    vocab_size = 257
    end_of_text_id = 256
    fingerprint = "bytes"

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """A number for each byte of the texts."""
        return [np.frombuffer(text.encode("utf-8"), np.uint8) for text in texts]


class Run(subprocess.Popen):
    """A process that prepares; it starts when its imports are done."""

    def __init__(self, folder: Path, engine: str, workers: int):
        command = [sys.executable, __file__, "--prepare", folder, engine, str(workers)]
        variables = environment("torch")
        super().__init__(command, env=variables, stdout=subprocess.PIPE, text=True)
        self.stdout.readline()
        self.started = time.time()


def start(folder: Path, engine: str, workers: int, again: bool = False) -> Run:
    """Start a run afresh, or again on what another left."""
    if not again:
        shutil.rmtree(folder / "prepared", ignore_errors=True)
    return Run(folder, engine, workers)


def prepare(folder: str, engine: str, workers: str) -> None:
    """What the process does."""
    path = Path(folder, "tokenizer")
    tokenizer = keras_gpt.tokenizers.load(path) if path.is_dir() else Bytes()
    print("ready", flush=True)
    keras_gpt.data.prepare(
        Path(folder, "source"),
        Path(folder, "prepared"),
        tokenizer,
        engine=engine,
        num_workers=int(workers),
        progress=False,
    )


def watch(run: Run, folder: Path) -> list[tuple[float, int, int, bool]]:
    """Wait for a run; its time, memory, its largest worker's, whether it has begun."""
    import psutil

    process, found = psutil.Process(run.pid), []
    while run.poll() is None:
        time.sleep(0.5)
        sizes = [0]
        for child in [process, *process.children(recursive=True)]:
            try:
                size = child.memory_info().rss - child.memory_info().shared
                if child == process:
                    own = size
                elif "ray::" in child.name() or "ray::" in " ".join(
                    child.cmdline()[:1]
                ):
                    sizes.append(size)
            except psutil.Error:
                continue
        written = folder / "prepared" / "train-00000.bin"
        has_begun = written.is_file() and written.stat().st_size > 0
        found.append((time.time() - run.started, own, max(sizes), has_begun))
    if run.returncode:
        sys.exit(f"It ended with {run.returncode}.")
    return found


def figures(folder: Path, seconds: float, peaks: list) -> list[str]:
    """MB/s and the peaks of memory."""
    splits = keras_gpt.data.read_metadata(folder / "prepared")["splits"]
    num_bytes = sum(split["num_bytes"] for split in splits.values())
    begun = next((peak[0] for peak in peaks if peak[3]), 0)
    shown = [f"{num_bytes / 1e6 / (seconds - start):.1f}" for start in (0, begun)]
    begun += (seconds - begun) / 10
    early = [peak for peak in peaks if peak[0] <= begun] or peaks[:1]
    for column in (1, 2):
        for some in (early, peaks):
            shown.append(f"{max(peak[column] for peak in some) / 1e6:.0f} MB")
    return shown


def kill_and_go_on(folder: Path, engines: list, kills: int, seconds: float) -> None:
    """Kill runs at random moments, go on with other engines."""
    chooser = random.Random(1)
    for number in range(kills):
        run = start(folder, *engines[number % len(engines)], again=number > 0)
        time.sleep(chooser.uniform(0.1, 0.3) * seconds)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        progress = folder / "prepared" / "progress.json"
        if progress.is_file():
            kept = json.loads(progress.read_text())
            print(f"killed, kept {kept['num_source_bytes']:,} bytes", file=sys.stderr)
    watch(start(folder, *engines[0], again=True), folder)


def read_outcome(folder: Path) -> dict[str, str]:
    """A checksum for each file that was written."""
    outcome = {}
    for path in sorted((folder / "prepared").iterdir()):
        with path.open("rb") as file:
            outcome[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return outcome


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        prepare(*sys.argv[2:])
    else:
        sys.exit(main())
