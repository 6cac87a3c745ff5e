r"""One NVIDIA card, one call, no network: are the numbers right, and how fast is it?

It has NOT been run on a card yet, only with `--small --device cpu`.

    python benchmarks/gpu.py --nanogpt ../nanoGPT --wheels wheels

It needs Python, PyTorch and JAX with CUDA. What else `keras_gpt` asks for it takes from
`--wheels`, a folder that is filled where there is a network by

    pip download --no-deps --only-binary=:all: --python-version 3.12 \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
        -r benchmarks/gpu_wheels.txt -d wheels

First correctness, on both backends: logits, the losses of the first steps and greedy
and sampled text of two small models against PyTorch's on the CPU of the same machine;
losses in bfloat16 and float16 fall; what a model held is free after it is gone. Then a
table: a training step of GPT-2 124M through `fit`, beside nanoGPT's model, compiled, on
the same card; generation beside Transformers; the memory that a step takes, for cards
that have less.

Each measurement is a process of its own with a limit of time, and the next isn't begun
where `--minutes` leave too little. Each row is written to `--output` as one line of
JSON as soon as it is measured, so that a run that is cut keeps what it had;
`--table FILE` prints the lines as Markdown. What was skipped, `--only memory` measures
in another call. Exits with 1 where a claim of correctness doesn't hold.
"""

import argparse
import contextlib
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path

import numpy as np
from common import (
    describe_commit,
    describe_machine,
    environment,
    make_clock,
    print_table,
)
from small_models import MODELS

# Relative to the largest: float32 with the products in another order
LOGITS_TOLERANCE = 1e-4
# bfloat16 keeps 8 bits, and rounds in each of the layers
HALF_TOLERANCE = 5e-2
LOSS_TOLERANCE = 1e-3
# FLOP/s of dense products in bfloat16, float16 on the T4 and V100, by the datasheets.
# The first whose name is in the card's counts.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}
GPT2 = {
    "vocab_size": 50304,  # as nanoGPT pads it
    "context_length": 1024,
    "embedding_dimension": 768,
    "num_layers": 12,
    "num_heads": 12,
}
TINY = {
    "vocab_size": 256,
    "context_length": 64,
    "embedding_dimension": 64,
    "num_layers": 2,
    "num_heads": 2,
}
_CHECKED = {**TINY, "num_heads": 4, "embedding_dimension": 256, "context_length": 128}
CHECKED_MODELS = {  # heads of 64, as the fused kernels want them
    # without dropout, which PyTorch draws by its own generator on a GPU
    name: {**fields, **_CHECKED, "dropout_rate": 0.0}
    for name, fields in MODELS.items()
}


def main() -> int:
    """Run every job that fits, print the table, return the exit status."""
    arguments = _parse()
    if arguments.table:
        print_tables(read_rows(arguments.table))
        return 0
    out = Path(arguments.output)
    deadline = time.monotonic() + 60 * arguments.minutes
    with out.open("w", encoding="utf-8") as file, tempfile.TemporaryDirectory() as site:

        def write(row):
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
            print("   ", json.dumps(row)[:200], file=sys.stderr)

        if arguments.wheels:
            _install(arguments.wheels, site)
            sys.path.insert(0, site)  # whose versions are told
        write({"task": "machine", "text": _describe(arguments)})
        for job in make_jobs(arguments):
            left = deadline - time.monotonic()
            about = {key: job[key] for key in ("task", "backend", "name")}
            print(f"... {about}, {left:.0f} s left", file=sys.stderr)
            if left < job["seconds"] / 2:
                write({**about, "skipped": f"{left:.0f} s are left"})
                continue
            run_job(job, min(job["seconds"], left), site, arguments.device, write)
    rows = read_rows(out)
    holds = judge(rows)
    print_tables(rows)
    return 0 if holds else 1


def _describe(arguments) -> str:
    nanogpt = arguments.nanogpt
    return describe_machine(
        setting=f"{arguments.minutes:g} minutes, device {arguments.device}"
        + (", small" if arguments.small else ""),
        peer=f"nanoGPT, {describe_commit(nanogpt)}" if nanogpt else "none",
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--nanogpt", help="folder of a checkout")
    parser.add_argument("--wheels", help="folder of wheels to install for this run")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all together")
    parser.add_argument(
        "--output",
        default=str(Path(os.environ.get("OUT", ".")) / "gpu.jsonl"),
        help="a line of JSON for each row",
    )
    parser.add_argument("--only", nargs="+", help="tasks to run, such as train")
    parser.add_argument(
        "--backends", nargs="+", choices=["torch", "jax"], default=["torch", "jax"]
    )
    parser.add_argument("--peak-tflops", type=float, help="of a card not in the table")
    parser.add_argument("--table", metavar="FILE", help="only print the rows of a file")
    return parser.parse_args()


def make_jobs(arguments) -> list[dict]:
    """The processes to start, the most important first.

    Each has `task`, `backend`, `name`, the worker's `arguments`, and the `seconds` that
    it may take.
    """
    small = arguments.small
    fields = TINY if small else GPT2
    length = fields["context_length"]
    train = {
        "fields": fields,
        "batch_size": 2 if small else 16,
        "steps": 3 if small else 20,
        "blocks": 2 if small else 4,
        "peak": arguments.peak_tflops and arguments.peak_tflops * 1e12,
    }
    generation = {
        "fields": fields,
        "batch_sizes": [1, 2] if small else [1, 32],
        "num_new": 8 if small else 128,
        "repeats": 1 if small else 2,
    }
    memory = {
        "fields": fields,
        "batch_sizes": [1, 2] if small else [2, 4, 8, 16],
    }
    jobs = [("ceilings", "torch", "", {"size": 256 if small else 8192}, 30)]
    steps = {"num_losses": 5, "num_new": 16 if small else 48}
    jobs.append(("reference", "torch", "cpu", steps, 60))
    for backend in arguments.backends:
        jobs.append(("numbers", backend, "", steps, 70))
        jobs.append(("half", backend, "", {"num_steps": 10 if small else 20}, 70))
    if arguments.nanogpt:
        options = {**train, "checkout": str(Path(arguments.nanogpt).resolve())}
        jobs.append(("nanogpt", "torch", "compiled", options, 120))
    for backend in arguments.backends:
        jobs.append(("train", backend, "", {**train, "jit_compile": None}, 100))
    for backend in arguments.backends:
        jobs.append(("generate", backend, "", generation, 100))
    jobs.append(("transformers", "torch", "", generation, 50))
    if "torch" in arguments.backends:
        options = {**train, "jit_compile": True}
        jobs.append(("train", "torch", "compiled", options, 120))
    for dtype in ("mixed_float16", "float32"):
        for backend in arguments.backends:
            options = {**memory, "dtype": dtype, "length": length}
            jobs.append(("memory", backend, dtype, options, 90))
    names = ("task", "backend", "name", "arguments", "seconds")
    jobs = [dict(zip(names, job, strict=True)) for job in jobs]
    if arguments.only:
        jobs = [job for job in jobs if job["task"] in arguments.only]
    return jobs


def run_job(job: dict, seconds: float, site: str, device: str, write) -> None:
    """Run a worker, and write each row that it prints when it prints it."""
    about = {key: job[key] for key in ("task", "backend", "name")}
    if job["name"] == "cpu":
        device = "cpu"
    variables = environment(job["backend"])
    variables["PYTHONPATH"] = os.pathsep.join([site, variables["PYTHONPATH"]])
    # or JAX takes three quarters of the card at once, and hides what a step needs
    variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    variables["PYTHONDONTWRITEBYTECODE"] = "1"  # nanoGPT's checkout is the user's
    if device == "cpu":
        variables |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    if job["task"] in ("numbers", "reference"):  # products in float32, not in TF32
        variables["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    options = {"task": job["task"], "folder": site, "device": device}
    command = [sys.executable, __file__, "--worker"]
    command.append(json.dumps({**options, **job["arguments"]}))
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=variables,
            start_new_session=True,  # so that compilers it started end with it
        )
        limit = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        limit.start()
        for line in process.stdout:
            if line.startswith('{"row": '):
                write({**about, **json.loads(line)["row"]})
        status = process.wait()
        limit.cancel()
        errors.seek(0)
        tail = errors.read()[-1500:]
    taken = time.monotonic() - start
    if status:
        cut = " (cut)" if taken >= seconds else ""
        write({**about, "failed": f"after {taken:.0f} s{cut}: {tail}"})
    write({**about, "took": round(taken, 1)})


def _install(wheels, site):
    paths = sorted(map(str, Path(wheels).glob("*.whl")))
    if not paths:
        sys.exit(f"There are no wheels in {wheels}. See --help for how to fill it.")
    options = ["-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", site]
    subprocess.run([*command, *paths], check=True)


# In a worker


def tell(**row):
    """Print a row for the parent."""
    print(json.dumps({"row": row}), flush=True)


def work(task: str, folder: str, device: str, **arguments) -> None:
    """Do one job."""
    if task in ("numbers", "reference"):
        compute(Path(folder), is_reference=task == "reference", **arguments)
    elif task in ("train", "nanogpt"):
        measure = measure_ours if task == "train" else measure_nanogpt
        tell(**describe_training(measure(device=device, **arguments), **arguments))
    else:
        function = {
            "ceilings": measure_ceilings,
            "generate": measure_generation,
            "half": train_in_half,
            "memory": measure_memory,
            "transformers": measure_transformers,
        }[task]
        function(device=device, **arguments)


def measure_ceilings(device: str, size: int) -> None:
    """What the card reaches: a product in bfloat16, and a copy of its memory."""
    import torch

    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    large = torch.randn(size * 4096, device=device)
    copy = torch.empty_like(large)
    product = _median_seconds(lambda: matrix @ matrix, device)
    copied = _median_seconds(lambda: copy.copy_(large), device)
    tell(
        card=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        product_tflops=2 * size**3 / product / 1e12,
        copy_gb_s=2 * large.nbytes / copied / 1e9,
    )


def _median_seconds(function, device, repeats=10):
    import torch

    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def make_model(fields: dict, dtype: str = "float32", scale: float = 0.0):
    """A model; with a scale, its weights are drawn by NumPy, alike on all devices."""
    import keras_gpt

    model = keras_gpt.GPT(keras_gpt.GPTConfig(**fields), dtype=dtype)
    if scale:
        generator = np.random.default_rng(0)
        model.set_weights(
            [
                generator.normal(0, scale, w.shape) if len(w.shape) > 1 else w
                for w in model.get_weights()
            ]
        )
    return model


def draw_ids(fields: dict, rows: int) -> np.ndarray:
    """Token ids of one more than the context, int32, with something to learn."""
    generator = np.random.default_rng(1)
    shape = (rows, fields["context_length"] + 1)
    # a few kinds are frequent, so that the loss can fall
    ids = fields["vocab_size"] * generator.random(shape) ** 4
    return ids.astype("int32")


def compute(folder: Path, is_reference: bool, num_losses: int, num_new: int) -> None:
    """Logits, losses and text of the small models, kept or compared with those kept."""
    import keras_gpt

    for name, fields in CHECKED_MODELS.items():
        model = make_model(fields, scale=0.08)
        ids = draw_ids(fields, 4)
        prompts = [row[:n].tolist() for row, n in zip(ids, (1, 5, 20, 40), strict=True)]
        found = {
            "logits": model.predict_on_batch(ids[:, :-1]),
            "greedy": keras_gpt.generate(model, prompts, num_new, temperature=0),
            "sampled": keras_gpt.generate(
                model, prompts, num_new, temperature=0.8, top_k=40, seed=7
            ),
        }
        half = make_model(fields, "mixed_bfloat16", scale=0.08)
        found["half_logits"] = half.predict_on_batch(ids[:, :-1])
        found["losses"] = losses = []
        keras_gpt.training.compile_model(model, 1e-3)
        for _ in range(num_losses):
            model.reset_metrics()  # or the loss is a mean over the steps so far
            losses.append(float(model.train_on_batch(ids[:, :-1], ids[:, 1:])))
        path = folder / f"{name}.npz"
        if is_reference:
            np.savez(path, **found)
            tell(model=name, losses=losses)
        else:
            with np.load(path) as expected:
                tell(model=name, **compare(dict(expected), found))


def compare(expected: dict, found: dict) -> dict:
    """Differences, and whether the claims hold."""
    scale = np.abs(expected["logits"]).max()
    logits, half, losses = (
        float(np.abs(np.asarray(found[a]) - expected[b]).max())
        for a, b in (("logits",) * 2, ("half_logits", "logits"), ("losses",) * 2)
    )
    same = {
        f"{key}_equal": sum(
            list(a) == list(b) for a, b in zip(found[key], expected[key], strict=True)
        )
        for key in ("greedy", "sampled")
    }
    rows = len(found["greedy"])
    # written so that NaN fails; sampled text is no claim: rounding may move a draw
    holds = logits / scale <= LOGITS_TOLERANCE and half / scale <= HALF_TOLERANCE
    holds = holds and losses <= LOSS_TOLERANCE and same["greedy_equal"] == rows
    return {
        "logits": float(logits / scale),
        "bfloat16_logits": float(half / scale),
        "losses": losses,
        "rows": rows,
        **same,
        "holds": bool(holds),
    }


def train_in_half(device: str, num_steps: int) -> None:
    """Losses in bfloat16 and float16 fall; the memory of a model gone is free."""
    import keras_gpt

    fields = CHECKED_MODELS["llama_like"]
    ids = draw_ids(fields, 8)
    for dtype in ("mixed_bfloat16", "mixed_float16"):
        model = make_model(fields, dtype)
        keras_gpt.training.compile_model(model, 1e-3)
        data = np.tile(ids, (num_steps, 1))
        losses = model.fit(
            data[:, :-1],
            data[:, 1:],
            batch_size=len(ids),
            epochs=2,
            shuffle=False,
            verbose=0,
        ).history["loss"]
        text = keras_gpt.generate(model, [[1, 2, 3]], 16, temperature=0.8, seed=1)
        holds = bool(losses[1] < losses[0] - 0.1) and len(text[0]) == 16
        tell(model=dtype, losses=losses, holds=holds)
    gone, held = weakref.ref(model), _held_bytes()
    weights = sum(w.nbytes for w in model.get_weights())
    del model
    gc.collect()
    freed = held - _held_bytes()
    # the weights and two moments of AdamW at least
    holds = gone() is None and freed >= 2.9 * weights
    tell(model="memory", held_mb=held / 1e6, freed_mb=freed / 1e6, holds=holds)


def _held_bytes():
    """Of all arrays of this process on the device."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return sum(array.nbytes for array in jax.live_arrays())
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    found = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for x in gc.get_objects()
        if isinstance(x, torch.Tensor)
    }
    return sum(found.values())


def measure_ours(
    device: str,
    fields: dict,
    batch_size: int,
    steps: int,
    blocks: int,
    peak: float | None,
    jit_compile: bool | None,
) -> list[float]:
    """Seconds for a step of `fit` in bfloat16, on average over each block."""
    del device, peak

    import keras_gpt

    model = make_model(fields, "mixed_bfloat16")
    keras_gpt.training.compile_model(
        model, 6e-4, total_steps=1000, warmup_steps=10, jit_compile=jit_compile
    )
    ids = draw_ids(fields, steps * batch_size)
    clock = make_clock()
    model.fit(
        ids[:, :-1],
        ids[:, 1:],
        batch_size=batch_size,
        epochs=1 + blocks,
        shuffle=False,
        callbacks=[clock],
        verbose=0,
    )
    tell(note="jit_compile", jit_compile=bool(model.jit_compile))
    return [seconds / steps for seconds in clock.times[1:]]


def measure_nanogpt(
    device: str,
    checkout: str,
    fields: dict,
    batch_size: int,
    steps: int,
    blocks: int,
    peak: float | None,
) -> list[float]:
    """The same of nanoGPT's model, as its `train.py` does a step on a GPU."""
    del peak
    import torch

    sys.path.insert(0, checkout)
    from model import GPT, GPTConfig

    torch.set_float32_matmul_precision("high")
    config = GPTConfig(
        block_size=fields["context_length"],
        vocab_size=fields["vocab_size"],
        n_layer=fields["num_layers"],
        n_head=fields["num_heads"],
        n_embd=fields["embedding_dimension"],
        dropout=0.0,
        bias=True,
    )
    with contextlib.redirect_stdout(sys.stderr):  # it prints its size
        model = GPT(config).to(device)
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device)
    step_model = torch.compile(model) if device == "cuda" else model
    ids = torch.from_numpy(draw_ids(fields, steps * batch_size).astype(np.int64))
    times = []
    for _ in range(1 + blocks):
        start = time.perf_counter()
        for rows in ids.split(batch_size):
            if device == "cuda":
                rows = rows.pin_memory().to(device, non_blocking=True)
            with torch.autocast(device, torch.bfloat16):
                _, loss = step_model(rows[:, :-1], rows[:, 1:].contiguous())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()  # wait for the device
        times.append((time.perf_counter() - start) / steps)
    return times[1:]


def describe_training(
    times: list[float], fields: dict, batch_size: int, peak: float | None, **others
) -> dict:
    """A row of the table; utilisation by the model's own arithmetic."""
    seconds = statistics.median(times)
    tokens = batch_size * fields["context_length"]
    e, length = fields["embedding_dimension"], fields["context_length"]
    kernels = 12 * fields["num_layers"] * e**2 + fields["vocab_size"] * e
    # as `GPT.count_flops_per_token`, which nanoGPT's process doesn't have
    flops = 3 * tokens * (2 * kernels + 4 * fields["num_layers"] * e * length)
    peak = peak or _find_peak()
    return {
        "batch_size": batch_size,
        "length": length,
        "ms": 1000 * seconds,
        "tokens_per_second": tokens / seconds,
        "utilisation": peak and flops / seconds / peak,
        "peak_memory_mb": _peak_bytes() / 1e6,
    }


def _find_peak():
    """The card's by its name, or `None`."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        card = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return next((peak for name, peak in PEAKS.items() if name in card.stdout), None)


def _peak_bytes():
    """The most that this process held on the card; 0 on a CPU."""
    keras = sys.modules.get("keras")
    if keras is not None and keras.backend.backend() == "jax":
        import jax

        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def measure_generation(
    device: str, fields: dict, batch_sizes: list[int], num_new: int, repeats: int
) -> None:
    """Tokens a second of random weights in bfloat16, greedy and sampled."""
    del device
    import keras_gpt

    model = make_model(fields, "bfloat16")
    for batch_size in batch_sizes:
        prompts = _prompts(fields, batch_size)
        for way, controls in (
            ("greedy", {"temperature": 0}),
            ("sampled", {"temperature": 0.8, "top_k": 40}),
        ):
            times = []
            for _ in range(1 + repeats):
                start = time.perf_counter()
                keras_gpt.generate(model, prompts, num_new, **controls)
                times.append(time.perf_counter() - start)
            _tell_speed(way, batch_size, num_new, times)


def _prompts(fields, batch_size):
    return draw_ids(fields, batch_size)[:, :16].tolist()


def _tell_speed(way, batch_size, num_new, times):
    seconds = statistics.median(times[1:])
    tell(
        way=way,
        batch_size=batch_size,
        tokens_per_second=batch_size * num_new / seconds,
        first_call_seconds=times[0],
    )


def measure_transformers(
    device: str, fields: dict, batch_sizes: list[int], num_new: int, repeats: int
) -> None:
    """The same of Transformers' GPT-2."""
    import torch
    import transformers

    config = transformers.GPT2Config(
        vocab_size=fields["vocab_size"],
        n_positions=fields["context_length"],
        n_embd=fields["embedding_dimension"],
        n_layer=fields["num_layers"],
        n_head=fields["num_heads"],
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config).to(device, torch.bfloat16).eval()
    for batch_size in batch_sizes:
        ids = torch.tensor(_prompts(fields, batch_size), device=device)
        for way, controls in (
            ("greedy", {"do_sample": False}),
            ("sampled", {"do_sample": True, "temperature": 0.8, "top_k": 40}),
        ):
            times = []
            for _ in range(1 + repeats):
                start = time.perf_counter()
                new = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=num_new,
                    min_new_tokens=num_new,
                    pad_token_id=0,
                    **controls,
                )
                new.cpu()  # wait for the device
                times.append(time.perf_counter() - start)
            _tell_speed(way, batch_size, num_new, times)


def measure_memory(
    device: str, fields: dict, batch_sizes: list[int], dtype: str, length: int
) -> None:
    """What a step of each batch size, the smallest first, takes at most."""
    del device
    import keras_gpt

    model = make_model(fields, dtype)
    keras_gpt.training.compile_model(model, 1e-4)
    for batch_size in batch_sizes:
        ids = draw_ids(fields, batch_size)
        for _ in range(2):
            loss = model.train_on_batch(ids[:, :-1], ids[:, 1:])
        # JAX keeps the most of all steps, which is that of the largest so far
        tell(
            batch_size=batch_size,
            length=length,
            peak_memory_mb=_peak_bytes() / 1e6,
            loss=float(loss),
        )


# The table


def read_rows(path: str | Path) -> list[dict]:
    """The rows of a file; a last line that was cut is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def judge(rows: list[dict]) -> bool:
    """Whether every claim of correctness that was looked at holds."""
    of_claims = [row for row in rows if row["task"] in ("reference", "numbers", "half")]
    return not any("failed" in row or row.get("holds") is False for row in of_claims)


def print_tables(rows: list[dict]) -> None:
    """Print the rows as Markdown."""

    def of(*tasks, key):
        return [row for row in rows if row["task"] in tasks and key in row]

    for row in of("machine", key="text"):
        print(row["text"])
    for row in of("ceilings", key="card"):
        print(
            f"{row['card']}: {row['product_tflops']:.1f} TFLOP/s in bfloat16 products, "
            f"{row['copy_gb_s']:.0f} GB/s copied\n"
        )
    if checks := of("numbers", "half", key="holds"):
        print_table(
            ["backend", "of", "found", "holds"],
            [
                [row["backend"], row["model"], _found(row), _yes(row["holds"])]
                for row in checks
            ],
        )
        print()
    if steps := of("train", "nanogpt", key="ms"):
        peer = next((r["ms"] for r in steps if r["task"] == "nanogpt"), None)
        print_table(
            ["a training step", "ms", "tokens/s", "of the peak", "over nanoGPT", "MB"],
            [
                [
                    "nanoGPT, compiled" if row["task"] == "nanogpt" else _name(row),
                    f"{row['ms']:.1f}",
                    f"{row['tokens_per_second']:,.0f}",
                    f"{row['utilisation']:.1%}" if row["utilisation"] else "",
                    f"{peer / row['ms']:.2f}" if peer else "",
                    f"{row['peak_memory_mb']:,.0f}",
                ]
                for row in steps
            ],
        )
        print()
    if speeds := of("generate", "transformers", key="way"):
        peers = {
            (r["batch_size"], r["way"]): r["tokens_per_second"]
            for r in speeds
            if r["task"] == "transformers"
        }
        table = []
        for row in speeds:
            name = "Transformers" if row["task"] == "transformers" else _name(row)
            peer = peers.get((row["batch_size"], row["way"]))
            speed = row["tokens_per_second"]
            ratio = f"{speed / peer:.2f}" if peer else ""
            first = f"{row['first_call_seconds']:.1f} s"
            batch_size = row["batch_size"]
            table.append([name, row["way"], batch_size, f"{speed:,.0f}", ratio, first])
        heads = ["generation", "", "batch", "tokens/s", "over Transformers", "first"]
        print_table(heads, table)
        print()
    if peaks := of("memory", key="peak_memory_mb"):
        print_table(
            ["memory of a step", "batch", "MB", "in 15 GB"],
            [
                [
                    _name(row),
                    f"{row['batch_size']} x {row['length']}",
                    f"{row['peak_memory_mb']:,.0f}",
                    _yes(row["peak_memory_mb"] < 15_000),
                ]
                for row in peaks
            ],
        )
        print()
    for key in ("skipped", "failed"):
        for row in rows:
            if key in row:
                print(f"- {row['task']} {_name(row)} {key}: {row[key].strip()[-300:]}")


def _name(row):
    return " ".join(filter(None, ["keras_gpt", row["backend"], row["name"]]))


def _yes(claim):
    return "yes" if claim else "**no**"


def _found(row):
    if "logits" in row:
        return (
            f"logits {row['logits']:.1e} (bfloat16 {row['bfloat16_logits']:.1e}), "
            f"losses {row['losses']:.1e}, greedy {row['greedy_equal']}/{row['rows']}, "
            f"sampled {row['sampled_equal']}/{row['rows']}"
        )
    if "freed_mb" in row:
        return f"{row['freed_mb']:.1f} of {row['held_mb']:.1f} MB are free again"
    return "losses " + ", ".join(f"{loss:.3f}" for loss in row["losses"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(**json.loads(sys.argv[2]))
    else:
        sys.exit(main())
