r"""Teach a chat model to translate what programs say, and measure what it learned.

The pairs come from the catalogues of messages in Python packages:

    pip install babel django
    pip download --no-deps --dest wheels wagtail pretix
    KERAS_BACKEND=torch python examples/finetune_translate.py runs/german \
        --package django --package wheels/wagtail-8.0.1-py3-none-any.whl
"""

from pathlib import Path
from typing import Annotated

import typer
from docstring_summaries import write_splits
from finetune_summarize import compare, draw, finetune
from gettext_translations import build_pairs, split_by_source
from rich.console import Console

import keras_gpt
from keras_gpt import evaluation, runs
from keras_gpt.files import write_json


def main(
    output: Annotated[Path, typer.Argument(help="Folder for data, runs and results.")],
    package: Annotated[
        list[str],
        typer.Option(
            help="An installed package, a folder or a wheel; may be repeated."
        ),
    ],
    target: Annotated[str, typer.Option(help="Language to translate to.")] = "de",
    model: Annotated[str, typer.Option(help="The model to tune.")] = "smollm2",
    epochs: Annotated[float, typer.Option(help="Rounds of fine-tuning.")] = 1.0,
    dtype: Annotated[str, typer.Option(help="Of the model to tune.")] = "bfloat16",
    limit: Annotated[
        int | None, typer.Option(help="Train on so many pairs at random, not on all.")
    ] = None,
    test_limit: Annotated[
        int, typer.Option(help="Validate on so many pairs, and translate as many.")
    ] = 300,
    seed: Annotated[int, typer.Option(help="Of split, adapters and order.")] = 0,
) -> None:
    """Build the data, tune, and print a table of BLEU and chrF."""
    splits = split_by_source(build_pairs(package, target), seed)
    limits = {"train": limit, "validation": test_limit, "test": test_limit}
    splits = {name: draw(splits[name], limits[name], seed) for name in limits}
    data = output / "data"
    write_splits(splits, data)
    sources = [pair["source"] for pair in splits["test"]]
    references = [pair["target"] for pair in splits["test"]]

    def translate(lm):
        return lm.translate(sources, 48, source="en", target=target, batch_size=32)

    translations = {"the source itself": sources}
    lm = keras_gpt.LanguageModel.from_pretrained(model, dtype=dtype)
    translations["before"] = translate(lm)
    tuned = finetune(
        runs.FinetuneConfig(
            model=model,
            data=str(data),
            output=str(output / "tuned"),
            dtype=dtype,
            epochs=epochs,
            batch_size=2,
            sample_tokens=0,
            seed=seed,
        )
    )
    minutes = runs.read_result(output / "tuned")["seconds"] / 60
    translations["after"] = translate(tuned)
    report(translations, references, output, target, minutes)


def report(translations, references, output, target, minutes):
    """Print a table and write it with all translations as JSON."""
    scores = {
        name: evaluation.score_translations(written, references, target=target)
        for name, written in translations.items()
    }
    table, results = compare(scores, {"bleu": "BLEU", "chrf": "chrF"})
    console = Console()
    console.print(table)
    signatures = scores["after"].signatures
    console.print(
        f"{len(references)} texts that were not trained on; behind the gain its 95% "
        f"bootstrap interval. BLEU: {signatures['bleu']}. chrF: {signatures['chrf']}. "
        f"Fine-tuning took {minutes:.0f} minutes.",
        highlight=False,
    )
    for i in range(0, len(references), len(references) // 5 + 1):
        console.print(f"\nreference: {references[i]}", highlight=False, markup=False)
        for name, written in translations.items():
            console.print(f"{name}: {written[i]}", highlight=False, markup=False)
    content = {
        "signatures": signatures,
        "minutes": minutes,
        "results": results,
        "references": references,
        "translations": translations,
    }
    write_json(output / "results.json", content)


if __name__ == "__main__":
    typer.run(main)
