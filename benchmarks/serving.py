"""SmolLM2-135M exported and answered as TensorFlow Serving answers, without XLA.

`served` is the SavedModel in TensorFlow's C API, the loader that the server calls, in a
process without Keras; its prompts and answers are text. `served, 1 thread` is the same
where an operation has one thread, as under the server's flag
`--tensorflow_intra_op_parallelism=1`. `in process` is `keras_gpt.generate` on the
TensorFlow backend with XLA off, `XLA` with XLA as it is by default: their prompts and
answers are token ids. Each runs in a process of its own, in turn, round by round; the
best round counts. The ratio is of the time for a token, to `in process`. Then, by the
weights that are stored: size on disk, time to load, time to the first answer with and
without the warm-up requests, and memory.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from common import (
    answer_worker,
    describe_machine,
    environment,
    print_table,
    run,
    run_worker,
)

PROMPT = "The standard library of Python is a collection of modules that a program"
ONE_THREAD = "served, 1 thread"
CONTESTANTS = {
    "in process": "tensorflow",
    "served": None,
    ONE_THREAD: None,
    "XLA": "tensorflow",
}
LIMIT = 1.3  # of the ratio, that the issue set


def main() -> int:
    """Export, measure, print the tables."""
    arguments = _parse()
    print(
        describe_machine(
            setting=f"greedy, {arguments.tokens} new tokens, best of "
            f"{arguments.rounds} rounds of {arguments.repeats} calls"
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        for weights in arguments.weights:
            _export(Path(folder) / weights / "1", weights, arguments.tokens)
        worst = _compare_speed(Path(folder) / arguments.weights[0] / "1", arguments)
        print()
        _compare_starts(Path(folder), arguments)
    return int(worst > LIMIT)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="new for each prompt")
    parser.add_argument("--repeats", type=int, default=3, help="calls that are timed")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--weights", nargs="+", default=["float32", "bfloat16", "int8"])
    return parser.parse_args()


def _export(path, weights, tokens) -> None:
    code = (
        "import sys, keras_gpt; "
        "lm = keras_gpt.LanguageModel.from_pretrained('smollm2', dtype='float32'); "
        "lm.export(sys.argv[1], weights=sys.argv[2], max_new_tokens=int(sys.argv[3]), "
        "stop_ids=(), temperature=0.0)"
    )
    command = [sys.executable, "-c", code, path, weights, tokens]
    run(command, env=environment("tensorflow"))


def _compare_speed(path, arguments) -> float:
    """Print tokens/s of each contestant; returns the worst ratio of `served`."""
    best = {}
    for _ in range(arguments.rounds):
        for name, backend in CONTESTANTS.items():
            speeds = run_worker(
                __file__,
                backend,
                kind=name,
                path=str(path),
                batch_sizes=arguments.batch_sizes,
                tokens=arguments.tokens,
                repeats=arguments.repeats,
            )
            for size, speed in zip(arguments.batch_sizes, speeds, strict=True):
                best[size, name] = max(speed, best.get((size, name), 0.0))
    rows = []
    for size in arguments.batch_sizes:
        for name in CONTESTANTS:
            ratio = best[size, "in process"] / best[size, name]
            rows.append([size, name, f"{best[size, name]:.1f}", f"{ratio:.2f}"])
    print_table(["batch", "", "tokens/s", "time of a token, ratio"], rows)
    sizes = arguments.batch_sizes
    return max(best[size, "in process"] / best[size, "served"] for size in sizes)


def _compare_starts(folder, arguments) -> None:
    rows = []
    for weights in arguments.weights:
        path = folder / weights / "1"
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        cold, warm = (
            run_worker(
                __file__, None, kind="start", path=str(path), warm=warm, batch_sizes=[1]
            )
            for warm in (False, True)
        )
        rows.append(
            [
                weights,
                f"{size / 1e6:.0f} MB",
                f"{cold['load']:.1f} s",
                f"{cold['first']:.2f} s",
                f"{warm['warm_up']:.1f} s",
                f"{warm['first']:.2f} s",
                f"{warm['memory']:.0f} MB",
            ]
        )
    print_table(
        [
            "weights",
            "on disk",
            "load",
            "first answer, cold",
            "warm-up",
            "first answer, warm",
            "memory",
        ],
        rows,
    )


def measure(kind, path, batch_sizes, **options):
    """The figures of one contestant, in a process of its own."""
    if kind == "start":
        return _start(path, **options)
    if kind == ONE_THREAD:  # read when TensorFlow loads
        os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
    make = _served if CONTESTANTS[kind] is None else _in_process
    generate = make(path, is_compiled=kind == "XLA")
    return [_speed(generate, size, **options) for size in batch_sizes]


def _speed(generate, batch_size, tokens, repeats):
    """Tokens a second of the fastest call, after one that isn't timed."""
    generate(batch_size, tokens)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        made = generate(batch_size, tokens)
        times.append(time.perf_counter() - start)
        if made != batch_size * tokens:
            sys.exit(f"{made} tokens came instead of {batch_size * tokens}.")
    return batch_size * tokens / min(times)


def _served(path, is_compiled):
    """A function that lets the SavedModel answer, as text."""
    del is_compiled
    from tests.tf_serving.capi import Model

    model = Model(path)

    def generate(batch_size, tokens):
        inputs = {
            "prompt": [PROMPT.encode()] * batch_size,
            "max_new_tokens": [tokens] * batch_size,
            "temperature": [0.0] * batch_size,
            "top_k": [0] * batch_size,
            "top_p": [1.0] * batch_size,
            "seed": [0] * batch_size,
        }
        return int(model.run("generate", inputs)["num_tokens"].sum())

    return generate


def _in_process(path, is_compiled):
    """A function that lets Keras's TensorFlow backend answer, as token ids."""
    del path
    import tensorflow as tf

    import keras_gpt
    from keras_gpt import backend

    if not is_compiled:
        backend.compile_function = lambda function, variables: tf.function(function)
    lm = keras_gpt.LanguageModel.from_pretrained("smollm2", dtype="float32")
    prompt = lm.tokenizer.encode(PROMPT)

    def generate(batch_size, tokens):
        rows = keras_gpt.generate(
            lm.model, [prompt] * batch_size, tokens, temperature=0.0, top_k=None
        )
        return sum(map(len, rows))

    return generate


def _start(path, warm):
    """Seconds to load, warm up and answer for the first time, and memory in MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    from tests.tf_serving.capi import Model
    from tests.tf_serving.double import to_array

    figures = {"warm_up": 0.0}
    start = time.perf_counter()
    model = Model(path)
    figures["load"] = time.perf_counter() - start
    if warm:
        start = time.perf_counter()
        for request in _read_warmup(Path(path)):
            inputs = {k: to_array(value) for k, value in request.inputs.items()}
            model.run(request.model_spec.signature_name, inputs)
        figures["warm_up"] = time.perf_counter() - start
    start = time.perf_counter()
    model.run("serving_default", {"prompt": [PROMPT.encode()]})
    figures["first"] = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**figures, "memory": (after - before) / 1024}


def _read_warmup(path):
    """The `PredictRequest`s that an export carries, in TFRecord format."""
    from tensorflow_serving.apis import prediction_log_pb2

    data = (path / "assets.extra" / "tf_serving_warmup_requests").read_bytes()
    while data:
        # length, its checksum, the record, its checksum
        end = 12 + int.from_bytes(data[:8], "little")
        log = prediction_log_pb2.PredictionLog.FromString(data[12:end])
        yield log.predict_log.request
        data = data[end + 4 :]


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not answer_worker(measure):
        sys.exit(main())
