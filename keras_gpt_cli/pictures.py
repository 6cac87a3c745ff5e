"""Commands that draw."""

from pathlib import Path
from typing import Annotated

import typer

from keras_gpt_cli.loading import load
from keras_gpt_cli.options import Dtype, Model, Revision
from keras_gpt_cli.output import note


def attention(
    model: Model,
    text: Annotated[str, typer.Argument(help="What the model reads.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The PNG to write.")
    ] = Path("attention.png"),
    layers: Annotated[
        list[int] | None,
        typer.Option(
            "--layer",
            help="Number of a layer, from 0; give it several times. \\[default: all]",
        ),
    ] = None,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Draw what each head of each layer attends to in a text, as a PNG."""
    if output.suffix.lower() != ".png":
        raise ValueError(f"The picture's name ends in .png. Received: {output}.")
    found = load(model, dtype, revision=revision).attention(text)
    found.save(output, layers)
    num_layers, num_heads, num_tokens, _ = found.weights.shape
    note(
        f"Drew {len(layers or range(num_layers))} layers of {num_heads} heads, "
        f"{num_tokens} tokens, in {output}."
    )
