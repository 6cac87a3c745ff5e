"""`Attention`: what each head of a model attends to in a text, and a picture of it."""

import dataclasses
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_gpt.files import atomic_path
from keras_gpt.generation.rows import find_adapters, list_adapters

_DPI = 100
_WIDTH = 1400  # pixels of the maps, wished for
_CELL = (12, 32)  # pixels of one weight: room for a label, and not too much
_LARGEST = 2**15  # pixels of the maps, that a picture can be looked at
_LONGEST_LABEL = 14  # characters
_GAP = 2  # cells between maps


@dataclasses.dataclass(frozen=True)
class Attention:
    """How much each token of a text attends to itself and to those before it.

    Args:
        text: The text.
        tokens: What each of its tokens stands for.
        weights: Float32 `(layers, heads, query, key)`. Each row of a query sums to 1,
            and is 0 for the keys behind it.

    Example:

    >>> import keras_gpt
    >>> tokenizer = keras_gpt.CharacterTokenizer.train(["hello world"])
    >>> config = keras_gpt.GPTConfig(vocab_size=8, context_length=16, num_heads=2,
    ...                              embedding_dimension=32, num_layers=1)
    >>> lm = keras_gpt.LanguageModel(keras_gpt.GPT(config), tokenizer)
    >>> attention = lm.attention("hello")
    >>> attention.weights.shape
    (1, 2, 5, 5)
    >>> attention.save("hello.png")
    """

    text: str
    tokens: list[str]
    weights: np.ndarray

    def save(self, path: str | Path, layers: Sequence[int] | None = None) -> None:
        """Write the picture that `draw` makes.

        Args:
            path: The PNG. Its folder is made if there is none.
            layers: As of `draw`.
        """
        picture = self.draw(layers)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(picture)

    def draw(self, layers: Sequence[int] | None = None) -> bytes:
        """Draw a map for each head: a row of maps for each layer.

        Args:
            layers: Numbers of those to draw, from 0. Defaults to all.

        Returns:
            A PNG. The text runs down its left side and along the bottom.

        Raises:
            ValueError: There is no such layer.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure

        num_layers, num_heads, n, _ = self.weights.shape
        layers = range(num_layers) if layers is None else layers
        if not len(layers) or not {*layers} <= {*range(num_layers)}:
            raise ValueError(
                f"`layers` must be some from 0 to {num_layers - 1}. "
                f"Received: {list(layers)}."
            )
        tiles = self._tile(layers)
        rows, columns = tiles.shape
        if max(tiles.shape) * _CELL[0] > _LARGEST:
            raise ValueError(
                f"A picture of {num_heads} heads and {len(layers)} layers for {n} "
                "tokens is too large. Give a shorter text, or fewer `layers`."
            )
        cell = int(np.clip(_WIDTH / columns, *_CELL))
        scale = np.clip(columns * cell / _WIDTH, 1, 2)  # of headings
        font = min(0.62 * cell, 9.0)  # points
        labels = [_shorten(_show(token), _LONGEST_LABEL) for token in self.tokens]
        room = 0.9 * font * max(map(len, labels)) + 12  # pixels of the longest label
        left, right, below = room + 30 * scale, 90 * scale, room + 6
        above = 76 * scale
        width = max(left + columns * cell + right, 560)
        height = above + rows * cell + below
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        FigureCanvasAgg(figure)

        def add_axes(x, y, wide, high):
            return figure.add_axes((x / width, y / height, wide / width, high / height))

        def write(x, y, text, size, **style):
            """Text so many pixels from the left and the upper side."""
            # texts may hold "$", which would start a formula
            style = {"parse_math": False, "size": size * scale, **style}
            figure.text(x / width, 1 - y / height, text, **style)

        axes = add_axes(left, below, columns * cell, rows * cell)
        # the square root shows small weights too
        norm = PowerNorm(0.5, vmin=0, vmax=1)
        image = axes.imshow(tiles, cmap="magma_r", norm=norm, interpolation="none")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, pad=3, labelsize=font)
        starts = (n + _GAP) * np.arange(max(num_heads, len(layers)))
        places = starts[:, None] + np.arange(n)
        down, along = places[: len(layers)].ravel(), places[:num_heads].ravel()
        axes.set_yticks(down, labels * len(layers), parse_math=False)
        axes.set_xticks(along, labels * num_heads, rotation=90, parse_math=False)
        middles = (starts + n / 2) * cell
        for head, middle in enumerate(middles[:num_heads]):
            write(left + middle, above - 6, f"head {head}", 10, ha="center")
        for layer, middle in zip(layers, middles, strict=False):
            place = {"rotation": 90, "ha": "center", "va": "center"}
            write(16 * scale, above + middle, f"layer {layer}", 10, **place)
        room = int((width - left) / (11 * scale))  # characters
        write(left, 26 * scale, _shorten(" ".join(self.text.split()), room), 13)
        about = "what each token (row) attends to: itself and those before it (columns)"
        write(left, 46 * scale, about, 9, color="0.35")
        high = min(180 * scale, 0.8 * rows * cell)
        x = left + columns * cell + 20 * scale
        bar = add_axes(x, height - above - high, 14 * scale, high)
        figure.colorbar(image, cax=bar, ticks=[0, 0.05, 0.25, 0.5, 1])
        bar.tick_params(labelsize=8 * scale)
        bar.set_title("weight", size=8 * scale, loc="left", pad=8 * scale)
        file = io.BytesIO()
        with warnings.catch_warnings():
            # characters that the font lacks are drawn as boxes
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
            figure.savefig(file, format="png")
        return file.getvalue()

    def _tile(self, layers):
        """The maps side by side, NaN where there is nothing to see."""
        weights = self.weights[list(layers)]
        _, _, n, _ = weights.shape
        behind = np.triu(np.ones((n, n), bool), 1)
        maps = np.where(behind, np.nan, weights)
        gap = ((0, 0), (0, 0), (0, _GAP), (0, _GAP))
        maps = np.pad(maps, gap, constant_values=np.nan)
        return np.block([list(row) for row in maps])[:-_GAP, :-_GAP]


def read_attention(lm, token_ids: Sequence[int]) -> Attention:
    """The attention weights of a language model reading token ids.

    Raises:
        ValueError: They are none, or too many for the model's context.
    """
    most = lm.model.config.context_length
    if not 0 < len(token_ids) <= most:
        raise ValueError(
            f"The text must have 1 to {most} tokens. Received: {len(token_ids)}. Give "
            "a part of it."
        )
    adapter = None
    if lm.adapter is not None:
        numbers = find_adapters(list_adapters(lm.model), lm.adapter, 1)
        adapter = np.array(numbers, "int32")
    weights = lm.model.attention_scores(np.array([token_ids]), adapter)[:, 0]
    tokens = [lm.tokenizer.token(token_id) for token_id in token_ids]
    return Attention(lm.tokenizer.decode(token_ids), tokens, weights)


def _show(token):
    """A label for a token, in which spaces and line ends are seen."""
    return token.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")


def _shorten(text, length):
    return text if len(text) <= length else f"{text[: length - 1]}…"
