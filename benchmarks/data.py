"""Data: tokenizing a corpus, starting on a large one, the batches of a step.

`prepare`, which reads a file and writes token files, against the `tokenizers` library's
own `encode_batch_fast` over the same documents, which are in memory and whose ids are
thrown away; in turns in one process, on all cores. The start: from the call of
`load_batches` to the first batch, on a made corpus whose files are sparse, so that no
disk is measured; beside it, what reading all of it to compare checksums takes. The
batches: time of one beside a step of `fit` with the same sizes. Exits with 1 where a
ratio is below its limit or a start takes too long.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import (
    answer_worker,
    describe_machine,
    make_clock,
    make_parser,
    print_table,
    run_worker,
)


def main() -> int:
    """Measure, print the tables, return the exit status."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--copies", type=int, default=6, help="of the embedded corpus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=10.0, help="to start on")
    parser.add_argument("--preset", default="char_cpu", help="of the model that steps")
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prepare-limit", type=float, default=0.9)
    parser.add_argument("--start-limit", type=float, default=10.0, help="seconds")
    parser.add_argument("--batches-limit", type=float, default=20.0)
    arguments = parser.parse_args()
    first = arguments.backends[0]
    print(
        describe_machine(
            setting=f"the embedded corpus {arguments.copies} times, byte pairs of "
            f"16,000 kinds, median of {arguments.rounds} rounds; {arguments.preset}, "
            f"batch {arguments.batch_size}",
            peer="tokenizers, encode_batch_fast",
        )
    )
    holds = True
    with tempfile.TemporaryDirectory() as folder:
        size = {"copies": arguments.copies, "rounds": arguments.rounds}
        found = run_worker(__file__, first, task="prepare", folder=folder, **size)
        rows = []
        for name, speeds in found["speeds"].items():
            pairs = zip(speeds, found["speeds"]["tokenizers"], strict=True)
            ratio = statistics.median(ours / peer for ours, peer in pairs)
            rows.append([name, f"{statistics.median(speeds):.2f}", f"{ratio:.2f}"])
            holds = holds and ratio >= arguments.prepare_limit
        print_table([f"{found['megabytes']:.1f} MB", "MB/s", "ratio"], rows)
        print()
        corpus = make_corpus(Path(folder, "large"), arguments.gigabytes)
        seconds = run_worker(__file__, first, task="start", folder=str(corpus))
        rows = [[name, f"{taken:.2f} s"] for name, taken in seconds.items()]
        print_table([f"{arguments.gigabytes:g} GB of token files", "time"], rows)
        print()
        holds = holds and seconds["load_batches, first batch"] <= arguments.start_limit
        rows = []
        for backend in arguments.backends:
            options = {"preset": arguments.preset, "batch_size": arguments.batch_size}
            batch, step = run_worker(
                __file__,
                backend,
                task="batches",
                folder=f"{folder}/prepared",
                steps=arguments.steps,
                **options,
            )
            times = f"{1000 * batch:.3f}", f"{1000 * step:.1f}"
            rows.append([backend, *times, f"{step / batch:.0f}"])
            holds = holds and step / batch >= arguments.batches_limit
        print_table(["", "ms a batch", "ms a step", "ratio"], rows)
    return 0 if holds else 1


def work(task: str, **arguments):
    """In a worker: one of the three."""
    tasks = {
        "prepare": measure_prepare,
        "start": measure_start,
        "batches": measure_batches,
    }
    return tasks[task](**arguments)


def measure_prepare(folder: str, copies: int, rounds: int) -> dict:
    """MB/s of the library, and of `prepare` from a text file and from JSON Lines."""
    from tokenizers import Tokenizer

    import keras_gpt

    documents = list(keras_gpt.data.embedded_corpus())
    tokenizer = keras_gpt.BytePairTokenizer.train(documents, 16_000, progress=False)
    library = Tokenizer.from_str(tokenizer.to_json())
    documents *= copies
    text, lines = Path(folder, "corpus.txt"), Path(folder, "corpus.jsonl")
    text.write_text("\n".join(documents), encoding="utf-8")
    with lines.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"text": document}) + "\n")

    def encode():
        library.encode_batch_fast(documents, add_special_tokens=False)

    def prepare(source):
        keras_gpt.data.prepare(
            source, f"{folder}/prepared", tokenizer, progress=False, overwrite=True
        )

    contestants = {
        "tokenizers": encode,
        "prepare, a text file": lambda: prepare(text),
        "prepare, JSON Lines": lambda: prepare(lines),
    }
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    speeds = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant()
            if number:  # the first is to warm up
                speeds[name].append(megabytes / (time.perf_counter() - start))
    return {"megabytes": megabytes, "speeds": speeds}


def make_corpus(folder: Path, gigabytes: float) -> Path:
    """Make a prepared folder whose shards are sparse: all ids are 0."""
    import hashlib

    shard_tokens, num_tokens = 2**26, int(gigabytes * 1e9 / 2)
    folder.mkdir()
    digests, shards = {}, []
    for number, start in enumerate(range(0, num_tokens, shard_tokens)):
        length = min(shard_tokens, num_tokens - start)
        name = f"train-{number:05d}.bin"
        with (folder / name).open("wb") as file:
            file.truncate(2 * length)
        if length not in digests:
            digests[length] = hashlib.sha256(bytes(2 * length)).hexdigest()
        shards.append({"file": name, "num_tokens": length, "sha256": digests[length]})
    ends = np.append(np.arange(1000, num_tokens, 1000), num_tokens).astype("<i8")
    (folder / "train-documents.bin").write_bytes(ends.tobytes())
    documents = {
        "file": "train-documents.bin",
        "sha256": hashlib.sha256(ends.tobytes()).hexdigest(),
    }
    counts = {
        "num_tokens": num_tokens,
        "num_documents": len(ends),
        "num_characters": num_tokens,
        "num_bytes": num_tokens,
    }
    metadata = {
        "dtype": "uint16",
        "vocab_size": 16_000,
        "end_of_text_id": 0,
        "tokenizer": "made",
        "splits": {"train": {**counts, "shards": shards, "documents": documents}},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def measure_start(folder: str) -> dict:
    """Seconds to the first batch, and to read everything."""
    import grain  # noqa: F401

    from keras_gpt import data

    start = time.perf_counter()
    data.TokenDataset(folder, "train", verify=True)
    seconds = {"all checksums, as it was": time.perf_counter() - start}
    for packing in ("windows", "documents"):
        start = time.perf_counter()
        batches = data.load_batches(
            folder, "train", 12, 64 if packing == "windows" else 1024, packing=packing
        )
        next(iter(batches))
        name = "load_batches, first batch"
        name += "" if packing == "windows" else " of whole documents"
        seconds[name] = time.perf_counter() - start
    return seconds


def measure_batches(
    folder: str, preset: str, batch_size: int, steps: int
) -> tuple[float, float]:
    """Seconds for a batch and for a step of `fit` that is fed by them."""
    import keras_gpt

    config = keras_gpt.GPTConfig.from_preset(preset, vocab_size=16_000)
    batches = keras_gpt.data.load_batches(
        folder, "train", batch_size, config.context_length
    ).repeat()
    iterator = iter(batches)
    next(iterator)
    start = time.perf_counter()
    for _ in range(1000):
        next(iterator)
    batch = (time.perf_counter() - start) / 1000

    model = keras_gpt.GPT(keras_gpt.GPTConfig.from_preset(preset, vocab_size=65))
    keras_gpt.training.compile_model(model)
    clock = make_clock()
    # of a model with few kinds of tokens, which the files' would not fit
    ids = np.zeros((steps * batch_size, config.context_length + 1), "int32")
    model.fit(
        ids[:, :-1],
        ids[:, 1:],
        batch_size=batch_size,
        epochs=4,
        callbacks=[clock],
        verbose=0,
    )
    return batch, statistics.median(clock.times[1:]) / steps


if __name__ == "__main__":
    if not answer_worker(work):
        sys.exit(main())
