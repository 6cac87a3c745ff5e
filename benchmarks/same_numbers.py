"""One saved model, three backends: the same logits, losses and text.

Trains two small models on the first backend, saves them, and computes from the same
files on each backend, in a process of its own: logits of a batch, the losses of the
first training steps, with dropout, greedy and sampled continuations of ragged prompts,
all in float32. Exits with 1 if a claim doesn't hold.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from common import (
    answer_worker,
    describe_machine,
    make_parser,
    print_table,
    run_worker,
)
from small_models import MODELS, make_models

LOGITS_TOLERANCE = 1e-5  # relative to the largest logit
LOSS_TOLERANCE = 1e-3
PROMPT_LENGTHS = (1, 2, 3, 5, 13, 21, 34, 55)
BATCH_SIZE = 8


def main() -> int:
    """Compute on each backend, print the table, return the exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--train-steps", type=int, default=200, help="before saving")
    parser.add_argument("--losses", type=int, default=20, help="training steps after")
    parser.add_argument("--tokens", type=int, default=64, help="new for each prompt")
    arguments = parser.parse_args()
    reference, *others = arguments.backends
    if not others:
        parser.error("--backends needs two at least: the first is the reference")
    print(
        describe_machine(
            setting=f"float32; models of {MODELS['gpt2_like']['num_layers']} layers, "
            f"width {MODELS['gpt2_like']['embedding_dimension']}, trained "
            f"{arguments.train_steps} steps on {reference} and saved; "
            f"{arguments.losses} losses, learning rate 1e-3; {len(PROMPT_LENGTHS)} "
            f"prompts, {arguments.tokens} new tokens",
            reference=reference,
            claims=f"logits within {LOGITS_TOLERANCE:g} of the largest, losses within "
            f"{LOSS_TOLERANCE:g}, greedy ids the same",
        )
    )
    rows, all_hold = [], True
    with tempfile.TemporaryDirectory() as folder:
        make_models(folder, reference, arguments.train_steps)
        for name in MODELS:
            results = {
                backend: _compute_on(backend, Path(folder, name), arguments)
                for backend in arguments.backends
            }
            for backend in others:
                row, holds = compare(results[reference], results[backend])
                rows.append([name, backend, *row])
                all_hold = all_hold and holds
    print_table(
        [
            "model",
            f"backend (reference: {reference})",
            "max diff. of logits / max logit",
            "max diff. of losses",
            "greedy rows equal",
            "sampled rows equal",
            "claims hold",
        ],
        rows,
    )
    return 0 if all_hold else 1


def compare(expected: dict, found: dict) -> tuple[list[str], bool]:
    """Cells of the table, and whether the claims hold."""
    scale = np.abs(expected["logits"]).max()
    logits = np.abs(found["logits"] - expected["logits"]).max() / scale
    losses = np.abs(found["losses"] - expected["losses"]).max()
    greedy = (found["greedy"] == expected["greedy"]).all(axis=1)
    # not a claim: rounding moves one in thousands of draws over an edge
    sampled = (found["sampled"] == expected["sampled"]).all(axis=1)
    # written so that NaN fails
    holds = bool(logits <= LOGITS_TOLERANCE and losses <= LOSS_TOLERANCE)
    holds = holds and bool(greedy.all())
    cells = [
        f"{logits:.1e}",
        f"{losses:.1e}",
        f"{greedy.sum()}/{len(greedy)}",
        f"{sampled.sum()}/{len(sampled)}",
        "yes" if holds else "**no**",
    ]
    return cells, holds


def _compute_on(backend, folder, arguments):
    path = run_worker(
        __file__,
        backend,
        folder=str(folder),
        path=str(folder / f"{backend}.npz"),
        num_losses=arguments.losses,
        num_tokens=arguments.tokens,
    )
    with np.load(path) as arrays:
        return dict(arrays)


def compute(folder: str, path: str, num_losses: int, num_tokens: int) -> str:
    """In a worker: everything that is compared, into an `.npz` file."""
    import keras

    import keras_gpt

    keras.utils.set_random_seed(1)  # of dropout
    model = keras_gpt.LanguageModel.load(folder, dtype="float32").model
    keras_gpt.training.compile_model(model, 1e-3)
    data, length = Path(folder, "data"), model.config.context_length
    batches = list(
        keras_gpt.data.load_batches(
            data, "train", BATCH_SIZE, length, seed=1, num_steps=num_losses
        )
    )
    text = keras_gpt.data.TokenDataset(data, "val")
    prompts = [
        text[100 * i : 100 * i + n].tolist() for i, n in enumerate(PROMPT_LENGTHS)
    ]
    greedy = keras_gpt.generate(model, prompts, num_tokens, temperature=0)
    sampled = keras_gpt.generate(model, prompts, num_tokens, temperature=0.8, seed=7)
    logits = model.predict_on_batch(batches[0][0])
    losses = []
    for token_ids, targets in batches:
        model.reset_metrics()  # or the loss is a mean over the steps so far
        losses.append(float(model.train_on_batch(token_ids, targets)))
    np.savez(path, logits=logits, losses=losses, greedy=greedy, sampled=sampled)
    return path


if __name__ == "__main__":
    if not answer_worker(compute):
        sys.exit(main())
