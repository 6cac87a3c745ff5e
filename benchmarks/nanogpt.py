"""nanoGPT (https://github.com/karpathy/nanoGPT), the peer of the training benchmarks.

Its model and its commands come from a checkout that the user made; here is only what
drives them.
"""

import contextlib
import itertools
import pickle
import re
import shutil
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from common import environment, run


def copy_with_corpus(checkout: str | Path, corpus: str | Path, folder: Path) -> Path:
    """Copy a checkout and put a corpus there, as `data/shakespeare_char` has it.

    Returns:
        The copy, in which its commands run.
    """
    if not Path(checkout, "train.py").is_file():
        sys.exit(f"There is no train.py in {checkout}: name a checkout of nanoGPT.")
    copy = folder / "nanoGPT"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
    data = copy / "data" / "shakespeare_char"
    text = Path(corpus).read_bytes().decode("utf-8")
    characters = sorted(set(text))
    ids = {character: i for i, character in enumerate(characters)}
    tokens = np.array([ids[character] for character in text], np.uint16)
    num_train = int(len(tokens) * 0.9)
    tokens[:num_train].tofile(data / "train.bin")
    tokens[num_train:].tofile(data / "val.bin")
    meta = {
        "vocab_size": len(characters),
        "itos": dict(enumerate(characters)),
        "stoi": ids,
    }
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    return copy


def train(copy: Path, options: dict) -> dict[str, float]:
    """Run its `train.py` with its configuration for characters.

    Args:
        copy: From `copy_with_corpus`.
        options: Of the command line.

    Returns:
        Its own last `estimate` of the validation loss, `seconds`, median `step_ms`.
    """
    flags = [f"--{name}={value}" for name, value in options.items()]
    start = time.perf_counter()
    output = run(
        [sys.executable, "train.py", "config/train_shakespeare_char.py", *flags],
        cwd=copy,
        env=environment(),
    )
    seconds = time.perf_counter() - start
    steps = re.findall(r"^iter \d+: .* time ([\d.]+)ms", output, re.MULTILINE)
    estimates = re.findall(r"^step \d+: .* val loss ([\d.]+)", output, re.MULTILINE)
    return {
        "estimate": float(estimates[-1]),
        "seconds": seconds,
        "step_ms": statistics.median(map(float, steps)),
    }


def evaluate(copy: Path) -> tuple[float, int]:
    """Mean loss of its checkpoint on all validation windows that don't overlap.

    Returns:
        The loss in nats and the number of tokens.
    """
    import torch

    sys.path.insert(0, str(copy))
    from model import GPT, GPTConfig

    checkpoint = torch.load(copy / "out-shakespeare-char" / "ckpt.pt")
    with contextlib.redirect_stdout(sys.stderr):  # it prints its size
        model = GPT(GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    model.eval()
    length = checkpoint["model_args"]["block_size"]
    path = copy / "data" / "shakespeare_char" / "val.bin"
    tokens = torch.from_numpy(np.fromfile(path, np.uint16).astype(np.int64))
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(tokens) - length, length):  # the whole ones
            window = tokens[None, start : start + length + 1]
            loss = model(window[:, :-1], window[:, 1:])[1]
            total += loss.item() * (window.shape[1] - 1)
            count += window.shape[1] - 1
    return total / count, count


def measure_blocks(
    checkout: str,
    train_bin: str,
    fields: dict,
    batch_size: int,
    steps: int,
    blocks: int,
    autocast: bool = False,
) -> list[float]:
    """Milliseconds for a training step, as in its `train.py`, on average over a block.

    Args:
        checkout: Its folder.
        train_bin: A file of uint16 token ids.
        fields: Of our `GPTConfig`.
        batch_size: Sequences in a step.
        steps: In a block.
        blocks: How many, after one to warm up.
        autocast: Whether products are in bfloat16, which it does on GPUs alone.
    """
    import torch

    sys.dont_write_bytecode = True  # the checkout is the user's
    sys.path.insert(0, checkout)
    from model import GPT, GPTConfig

    torch.manual_seed(1337)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    length = fields["context_length"]
    config = GPTConfig(
        block_size=length,
        vocab_size=fields["vocab_size"],
        n_layer=fields["num_layers"],
        n_head=fields["num_heads"],
        n_embd=fields["embedding_dimension"],
        dropout=fields["dropout_rate"],
        bias=fields["use_bias"],
    )
    model = GPT(config).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device)

    def get_batch():
        data = np.memmap(train_bin, dtype=np.uint16, mode="r")
        ix = torch.randint(len(data) - length, (batch_size,))
        x, y = (
            torch.stack(
                [
                    torch.from_numpy(data[i + k : i + k + length].astype(np.int64))
                    for i in ix
                ]
            )
            for k in (0, 1)
        )
        return x.to(device), y.to(device)

    x, y = get_batch()
    times = []
    for _ in range(1 + blocks):
        start = time.perf_counter()
        for _ in itertools.repeat(None, steps):
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                _, loss = model(x, y)
            x, y = get_batch()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()  # wait for the device
        times.append(1000 * (time.perf_counter() - start) / steps)
    return times[1:]
