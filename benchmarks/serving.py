"""SmolLM2-135M exported and answered as TensorFlow Serving answers, without XLA.

`served` is the SavedModel in TensorFlow's C API, the loader that the server calls, in a
process without Keras; its prompts and answers are text. `served, 1 thread` is the same
where an operation has one thread, as under the server's flag
`--tensorflow_intra_op_parallelism=1`; `served, XLA` an export with `flavour="xla"`
under the flag that lets the server compile, `--xla_cpu_compilation_enabled=true`. `XLA`
is `keras_gpt.generate` on the TensorFlow backend in process, as it is by default, on
token ids. Each runs in a process of its own, in turn, round by round; the best round
counts. The ratio is to `XLA`. Then, by the weights that are stored: size on disk, time
to load, time to the first answer with and without the warm-up requests, and memory.

The whole should take five minutes on two quiet cores. `--folder` keeps the exports, to
run it in parts: `--contestants` and `--starts` without a name leave one out.
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
WITH_XLA = "served, XLA"
CONTESTANTS = {  # backends
    "XLA": "tensorflow",
    "served": None,
    ONE_THREAD: None,
    WITH_XLA: None,
}
WEIGHTS = ("float32", "bfloat16", "int8")


def main() -> None:
    """Export, measure, print the tables."""
    arguments = _parse()
    print(
        describe_machine(
            setting=f"greedy, {arguments.tokens} new tokens, best of "
            f"{arguments.rounds} rounds of {arguments.repeats} calls"
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(arguments.folder or folder).resolve()
        kinds = {_export_of(name, arguments) for name in arguments.contestants}
        kinds |= {f"{weights}-stock" for weights in arguments.starts}
        _export(folder, kinds, arguments.tokens)
        if arguments.contestants:
            _compare_speed(folder, arguments)
            print()
        if arguments.starts:
            _compare_starts(folder, arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=64, help="new for each prompt")
    parser.add_argument("--repeats", type=int, default=2, help="calls that are timed")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--weights", choices=WEIGHTS, default="float32", help="served")
    parser.add_argument(
        "--contestants", nargs="*", choices=CONTESTANTS, default=[*CONTESTANTS]
    )
    parser.add_argument(
        "--starts", nargs="*", choices=WEIGHTS, default=WEIGHTS, help="to be timed"
    )
    parser.add_argument(
        "--warm", nargs="*", choices=WEIGHTS, default=["float32"], help="of the starts"
    )
    parser.add_argument("--folder", help="of exports, made or used again (--tokens)")
    return parser.parse_args()


def _export_of(name, arguments) -> str:
    """The export that a contestant reads."""
    return f"{arguments.weights}-{'xla' if name == WITH_XLA else 'stock'}"


def _export(folder, kinds, tokens) -> None:
    """Export the model by weights-flavour, where that isn't in the folder yet."""
    missing = [kind for kind in sorted(kinds) if not (folder / kind / "1").exists()]
    code = (
        "import sys, keras_gpt; folder, tokens, *kinds = sys.argv[1:]; "
        "lm = keras_gpt.LanguageModel.from_pretrained('smollm2', dtype='float32'); "
        "[lm.export(f'{folder}/{kind}/1', weights=weights, flavour=flavour, "
        "max_new_tokens=int(tokens), stop_ids=(), temperature=0.0) "
        "for kind in kinds for weights, flavour in [kind.split('-')]]"
    )
    if missing:
        command = [sys.executable, "-c", code, folder, tokens, *missing]
        run(command, env=environment("tensorflow"))


def _compare_speed(folder, arguments) -> None:
    """Print tokens/s of each contestant."""
    best = {}
    for _ in range(arguments.rounds):
        for name in arguments.contestants:
            speeds = run_worker(
                __file__,
                CONTESTANTS[name],
                kind=name,
                path=str(folder / _export_of(name, arguments) / "1"),
                batch_sizes=arguments.batch_sizes,
                tokens=arguments.tokens,
                repeats=arguments.repeats,
            )
            for size, speed in zip(arguments.batch_sizes, speeds, strict=True):
                best[size, name] = max(speed, best.get((size, name), 0.0))
    rows = []
    for size in arguments.batch_sizes:
        for name in arguments.contestants:
            speed, base = best[size, name], best.get((size, "XLA"))
            ratio = f"{speed / base:.2f}" if base else ""
            rows.append([size, name, f"{speed:.1f}", ratio])
    print_table(["batch", "", "tokens/s", "ratio"], rows)


def _compare_starts(folder, arguments) -> None:
    rows = []
    for weights in arguments.starts:
        path = folder / f"{weights}-stock" / "1"
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        options = {"kind": "start", "path": str(path)}
        cold = run_worker(__file__, None, warm=False, **options)
        row = [
            weights,
            f"{size / 1e6:.0f} MB",
            f"{cold['load']:.1f} s",
            f"{cold['first']:.2f} s",
            "",
            "",
            f"{cold['memory']:.0f} MB",
        ]
        if weights in arguments.warm:
            warm = run_worker(__file__, None, warm=True, **options)
            row[4:] = [
                f"{warm['warm_up']:.1f} s",
                f"{warm['first']:.2f} s",
                f"{warm['memory']:.0f} MB",
            ]
        rows.append(row)
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


def measure(kind, path, batch_sizes=(), **options):
    """The figures of one contestant, in a process of its own."""
    if kind == "start":
        return _start(path, **options)
    if kind == ONE_THREAD:  # read when TensorFlow loads
        os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
    generate = _in_process() if kind == "XLA" else _served(path, kind == WITH_XLA)
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


def _served(path, xla):
    """A function that lets the SavedModel answer, as text."""
    from tests.tf_serving.capi import Model, load_tensorflow

    load_tensorflow(xla=xla)
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


def _in_process():
    """A function that lets Keras's TensorFlow backend answer, as token ids."""
    import keras_gpt

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
        main()
