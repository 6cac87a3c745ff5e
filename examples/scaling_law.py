"""How the loss falls with parameters and tokens: a sweep, and a law fitted to it.

Small models of some widths are trained for some numbers of steps on the documentation
that comes with Python, nine runs of seconds to minutes each:

    KERAS_BACKEND=tensorflow python examples/scaling_law.py runs/law

It prints the law, and draws it into `law.png`. Stopped, the same command goes on.

References:
    - [Hoffmann et al., 2022](https://arxiv.org/abs/2203.15556), "Chinchilla"
"""

import math
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import keras_gpt
from keras_gpt import data, runs, tokenizers

EXPONENTS = np.linspace(0.05, 1.5, 59)


def main(
    output: Annotated[Path, typer.Argument(help="Folder for all that is made.")],
    corpus: Annotated[str, typer.Option(help="What to train on.")] = "embedded",
    vocab_size: Annotated[int, typer.Option(help="Kinds of tokens.")] = 1024,
    widths: Annotated[str, typer.Option(help="Of the models.")] = "32,64,128",
    steps: Annotated[str, typer.Option(help="Of the runs.")] = "100,300,900",
    batch_size: Annotated[int, typer.Option(help="Rows of 128 tokens.")] = 8,
) -> None:
    """Train, fit, draw."""
    if not (output / "tokenizer").is_dir():
        tokenizer = runs.train_tokenizer("byte_pair", corpus, vocab_size)
        tokenizer.save(output / "tokenizer")
    tokenizer = tokenizers.load(output / "tokenizer")
    data.prepare(corpus, output / "data", tokenizer)  # once, if it is all there
    first_width = int(widths.split(",")[0])
    config = runs.RunConfig(
        recipe="fast",
        data=str(output / "data"),
        tokenizer=str(output / "tokenizer"),
        model={
            "embedding_dimension": first_width,
            "num_layers": 3,
            "num_heads": 4,
            "context_length": 128,
        },
        batch_size=batch_size,
        evaluate_every=math.gcd(*map(int, steps.split(","))),
        sample_tokens=0,
    )
    over = {"model.embedding_dimension": widths, "steps": steps}
    trials = runs.sweep(config, over, output / "sweep")
    found = [read_run(trial.folder) for trial in trials if trial.loss is not None]
    parameters, tokens, losses = np.array(found).T
    law = fit_law(parameters, tokens, losses)
    floor, a, alpha, b, beta = law
    print(f"loss = {floor:.3f} + {a:.3g} / N^{alpha:.2f} + {b:.3g} / D^{beta:.2f}")
    gap = np.abs(loss_by(law, parameters, tokens) - losses)
    print(f"{len(losses)} runs, within {gap.max():.3f} (N parameters, D tokens seen)")
    draw(output / "law.png", law, parameters, tokens, losses)


def read_run(folder):
    """Parameters but for the embeddings, tokens that were seen, and loss of a run."""
    config = runs.RunConfig.from_yaml(folder / runs.CONFIG_FILE)
    model = keras_gpt.LanguageModel.load(folder).model
    embeddings = model.config.vocab_size * model.config.embedding_dimension
    result = runs.read_result(folder)
    tokens = config.steps * config.batch_size * model.config.context_length
    return model.count_params() - embeddings, tokens, result["validation_loss"]


def loss_by(law, parameters, tokens):
    """What the law says."""
    floor, a, alpha, b, beta = law
    return floor + a / parameters**alpha + b / tokens**beta


def fit_law(parameters, tokens, losses):
    """Floor, factors and exponents with the least squares of relative errors.

    For each pair of exponents the others are a linear problem.
    """
    best = np.inf, None
    for alpha, beta in product(EXPONENTS, EXPONENTS):
        terms = [np.ones_like(losses), parameters**-alpha, tokens**-beta]
        columns = np.stack(terms, axis=1) / losses[:, None]
        scale = columns.max(axis=0)
        factors = np.linalg.lstsq(columns / scale, np.ones_like(losses))[0] / scale
        error = np.sum((columns @ factors - 1) ** 2)
        if error < best[0] and factors.min() >= 0:
            best = error, (factors[0], factors[1], alpha, factors[2], beta)
    if best[1] is None:
        raise ValueError("No law fits these runs: their losses don't fall with both.")
    return best[1]


def draw(path, law, parameters, tokens, losses):
    """The runs of each size over the tokens they saw, and what the law says of it."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    curve = np.geomspace(tokens.min(), tokens.max(), 50)
    for size in np.unique(parameters):
        is_size = parameters == size
        [line] = axes.plot(curve, loss_by(law, size, curve))
        label = f"{size / 1e6:.2f}M parameters"
        axes.scatter(
            tokens[is_size], losses[is_size], color=line.get_color(), label=label
        )
    axes.set(xscale="log", xlabel="tokens seen", ylabel="validation loss, nats")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    typer.run(main)
