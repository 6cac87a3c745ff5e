"""Draw what each head of each layer attends to, as a PNG.

With the folder of a trained model (`keras-gpt quickstart` writes one):

    python examples/attention_maps.py runs/quickstart --text "Return a new list"

Without a folder it trains a small model first, in less than a minute.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

import keras_gpt

TEXT = "If the file is not found, the open function will raise an exception."
MOST_TOKENS = 48  # labels of more can't be read


def train_small_model(num_steps):
    """Train 2 layers of 4 heads on some of the documentation that Python carries."""
    documents = list(itertools.islice(keras_gpt.data.embedded_corpus(), 60))
    tokenizer = keras_gpt.BytePairTokenizer.train(documents, vocab_size=2048)
    token_ids = np.concatenate(tokenizer.encode_batch(documents)).astype("int32")
    config = keras_gpt.GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=64,
        embedding_dimension=128,
        num_layers=2,
        num_heads=4,
        position_embedding="rotary",
    )
    model = keras_gpt.GPT(config)
    keras_gpt.training.compile_model(model, 3e-3, total_steps=num_steps)
    starts = np.random.default_rng(0).integers(len(token_ids) - 65, size=16 * num_steps)
    windows = token_ids[starts[:, None] + np.arange(65)]
    model.fit(windows[:, :-1], windows[:, 1:], batch_size=16)
    return keras_gpt.LanguageModel(model, tokenizer)


def draw_attention_maps(attention_scores, labels):
    """Draw a grid of maps: a row for each layer, a column for each head.

    Args:
        attention_scores: `(layers, heads, query, key)`.
        labels: What each token stands for.

    Returns:
        A `matplotlib` figure.
    """
    num_layers, num_heads, num_tokens, _ = attention_scores.shape
    side = min(0.5 + 0.13 * num_tokens, 24 / num_heads)  # inches of one map
    font_size = min(7.0, 55 * side / num_tokens)
    figure = Figure(
        figsize=(side * num_heads + 2, side * num_layers + 1.6), layout="compressed"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        num_layers, num_heads, sharex=True, sharey=True, squeeze=False
    )
    # the square root shows small weights too
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    later = np.triu(np.ones((num_tokens, num_tokens), bool), 1)  # never attended to
    for (layer, head), axes in np.ndenumerate(grid):
        weights = np.ma.masked_where(later, attention_scores[layer, head])
        image = axes.imshow(weights, cmap="magma_r", norm=norm)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, pad=2, labelsize=font_size)
        if layer == 0:
            axes.set_title(f"head {head}", fontsize=9)
        if head == 0:
            axes.set_ylabel(f"layer {layer}", fontsize=9)
    ticks = np.arange(num_tokens)
    # tokens may hold "$", which would start a formula
    grid[0, 0].set_yticks(ticks, labels, parse_math=False)
    for axes in grid[-1]:
        axes.set_xticks(ticks, labels, rotation=90, parse_math=False)
    figure.suptitle(
        "How much each token (row) attends to itself and to those before it (columns)"
    )
    figure.colorbar(
        image, ax=grid, label="attention weight", shrink=0.6, aspect=30, pad=0.02
    )
    return figure


def main():
    """Read the command line, get a model, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="folder of a trained model")
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--output", type=Path, default=Path("attention_maps.png"))
    parser.add_argument("--steps", type=int, default=400, help="of the small model")
    options = parser.parse_args()
    if not options.text:
        parser.error("--text must not be empty")
    if options.model:
        language_model = keras_gpt.LanguageModel.load(options.model)
    else:
        language_model = train_small_model(options.steps)
    model, tokenizer = language_model.model, language_model.tokenizer
    most = min(MOST_TOKENS, model.config.context_length)
    token_ids = tokenizer.encode(options.text)[:most]
    # spaces and line ends shall be seen
    labels = [
        tokenizer.token(token_id).replace(" ", "·").replace("\n", "↵")
        for token_id in token_ids
    ]
    attention_scores = model.attention_scores(np.array([token_ids]))[:, 0]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure = draw_attention_maps(attention_scores, labels)
    figure.savefig(options.output, dpi=150, bbox_inches="tight")
    print(f"Wrote the maps of {attention_scores.shape[0]} layers to {options.output}.")


if __name__ == "__main__":
    main()
