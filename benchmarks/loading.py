"""Loading SmolLM2-135M: time and memory beside Transformers; loss in smaller weights.

Time is that of `from_pretrained`, tokenizer included, in a fresh process that has built
a tiny model before, the median of the repeats; for Transformers that of its model and
tokenizer from the same folder, in a fresh process and with its modules imported before,
which it puts off until then. Memory is what is resident at most while the model is
loaded, beyond what was before, over the size of the weights in their target dtype.
Exits with 1 where time is above 2 times Transformers' in a fresh process, or memory
above 1.3 times the weights. The loss is that of the first tokens of the embedded
corpus. That of float32 is Q4_1's too, GGUF's 4 bits, in which the package has them.
"""

import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import (
    answer_worker,
    describe_machine,
    make_parser,
    print_table,
    run,
    run_worker,
)

DTYPES = ("float32", "bfloat16")
WRITE = (
    "import sys, keras_gpt; keras_gpt.LanguageModel.from_pretrained('smollm2', "
    "dtype='float32').save_huggingface(sys.argv[1], dtype=sys.argv[2])"
)


def main() -> int:
    """Measure, print the tables, return the exit status."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--time-limit", type=float, default=2.0)
    parser.add_argument("--memory-limit", type=float, default=1.3)
    parser.add_argument("--loss-tokens", type=int, default=8_000, help="0: none")
    arguments = parser.parse_args()
    print(describe_machine(setting=f"median of {arguments.repeats} processes"))
    rows, holds = [], True
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            stored = str(Path(folder) / dtype)
            run([sys.executable, "-c", WRITE, stored, dtype])
            # the backend, or None for Transformers; whether modules are imported before
            contestants = [(None, False), (None, True)]
            contestants += [(backend, True) for backend in arguments.backends]
            results = {contestant: [] for contestant in contestants}
            for _ in range(arguments.repeats):
                for contestant in contestants:
                    backend, imports = contestant
                    result = run_worker(
                        __file__, backend, folder=stored, dtype=dtype, imports=imports
                    )
                    results[contestant].append(result)
            medians = {
                contestant: [
                    statistics.median(column) for column in zip(*result, strict=True)
                ]
                for contestant, result in results.items()
            }
            for (backend, imports), (seconds, memory) in medians.items():
                name = f"keras_gpt {backend}" if backend else "Transformers"
                name += " imported" if imports and not backend else ""
                ratios = [
                    seconds / medians[None, imported][0] for imported in (False, True)
                ]
                texts = [f"{ratio:.2f}" for ratio in ratios]
                rows.append([dtype, name, f"{seconds:.2f} s", *texts, f"{memory:.2f}"])
                if backend:
                    holds = holds and ratios[0] <= arguments.time_limit
                    holds = holds and memory <= arguments.memory_limit
    print_table(["dtype", "", "time", "ratio", "to imported", "memory / weights"], rows)
    print()
    if not arguments.loss_tokens:
        return 0 if holds else 1
    with tempfile.TemporaryDirectory() as folder:
        losses = run_worker(
            __file__, "torch", folder=folder, num_tokens=arguments.loss_tokens
        )
    print_table(
        ["weights", "MB", "loss", "change"],
        [
            [name, f"{size:.0f}", f"{loss:.4f}", f"{loss - losses[0][2]:+.4f}"]
            for name, size, loss in losses
        ],
    )
    return 0 if holds else 1


def work(**arguments):
    """In a worker: time and memory of loading, or the losses."""
    if "num_tokens" in arguments:
        return _losses(**arguments)
    return _load(**arguments)


def _load(folder: str, dtype: str, imports: bool) -> list[float]:
    import os

    if "KERAS_BACKEND" in os.environ:
        import keras_gpt

        config = keras_gpt.GPTConfig(
            vocab_size=64,
            context_length=16,
            embedding_dimension=32,
            num_layers=1,
            num_heads=2,
        )
        keras_gpt.GPT(config, dtype=dtype)

        def load():
            lm = keras_gpt.LanguageModel.from_pretrained(folder, dtype=dtype)
            return lm, lm.model.count_params()

    else:
        import torch
        import transformers

        if imports:
            transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=0))

        def load():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype)
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            return (model, tokenizer), model.num_parameters()

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    start = time.perf_counter()
    loaded, num_parameters = load()
    seconds = time.perf_counter() - start
    memory = _resident("VmHWM") - before
    del loaded
    return [seconds, memory / (num_parameters * (4 if dtype == "float32" else 2))]


def _resident(field):
    """Bytes of this process in memory, now (`VmRSS`) or at most (`VmHWM`)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def _losses(folder: str, num_tokens: int) -> list[tuple]:
    import keras_gpt

    found = []
    names = ["float32", "bfloat16", "int8"]
    if importlib.util.find_spec("openvino"):
        names += [f"OpenVINO {weights}" for weights in ("float32", "int8", "int4")]
    for name in names:
        dtype = "bfloat16" if name == "bfloat16" else "float32"
        lm = keras_gpt.LanguageModel.from_pretrained("smollm2", dtype=dtype)
        if name == "int8":
            lm.quantize("int8")
        size = _count_bytes(lm.model.weights)
        if name.startswith("OpenVINO"):
            lm, size = _export(lm, name.split()[1], folder)
        ids = []
        for document in keras_gpt.data.read_documents("embedded"):
            ids += lm.tokenizer.encode(document)
            if len(ids) >= num_tokens:
                break
        # windows of the whole context of 8,192 tokens would take much memory
        windows = [ids[i : i + 512] for i in range(0, num_tokens, 512)]
        scores = keras_gpt.generation.score(lm.model, [w for w in windows if w[1:]])
        loss = -sum(float(s.sum()) for s in scores) / sum(map(len, scores))
        found.append((name, size / 1e6, loss))
    return found


def _count_bytes(weights):
    sizes = {"float32": 4, "bfloat16": 2, "int8": 1}
    return sum(int(weight.value.numel()) * sizes[weight.dtype] for weight in weights)


def _export(lm, weights, folder):
    """The model as OpenVINO runs it, and the bytes of its weights."""
    import keras_gpt

    path = Path(folder) / weights
    lm.export(path, flavour="openvino", weights=weights, progress=False)
    size = (path / "openvino_model.bin").stat().st_size
    return keras_gpt.LanguageModel.load(path), size


if __name__ == "__main__":
    if not answer_worker(work):
        sys.exit(main())
