"""Teach a chat model a task, measure it, export it, and ask it: the whole way.

The task is to write the first line of a docstring of which the rest is given; the data
are on every machine, and nothing is downloaded:

    KERAS_BACKEND=torch python examples/tune_and_serve.py runs/docs

What it exports is served by TensorFlow Serving, as README.md in its folder says. With
`--address http://localhost:8501` the server is asked too, and must give what the model
gives here.
"""

import time
from pathlib import Path
from typing import Annotated

import typer
from docstring_summaries import build_pairs, split_by_module, write_splits
from finetune_summarize import INSTRUCTION, draw, finetune

import keras_gpt
from keras_gpt import evaluation, runs
from keras_gpt.files import write_json
from keras_gpt.tf_serving import Client

SHOWN = 5  # texts to ask for at the end


def main(
    output: Annotated[Path, typer.Argument(help="Folder for all that is made.")],
    model: Annotated[str, typer.Option(help="The chat model to tune.")] = "smollm2",
    epochs: Annotated[float, typer.Option(help="Rounds of fine-tuning.")] = 1.0,
    limit: Annotated[int, typer.Option(help="Pairs to train on.")] = 600,
    test_limit: Annotated[int, typer.Option(help="Pairs to measure with.")] = 60,
    dtype: Annotated[str, typer.Option(help="Of the model to tune.")] = "bfloat16",
    max_new_tokens: Annotated[int, typer.Option(help="Of a summary.")] = 32,
    address: Annotated[
        str | None, typer.Option(help="Of a server of the export, to ask it too.")
    ] = None,
) -> None:
    """Build data, tune, evaluate, export, ask."""
    splits = split_by_module(build_pairs(), 0)
    limits = {"train": limit, "validation": test_limit, "test": test_limit}
    splits = {name: draw(pairs, limits[name], 0) for name, pairs in splits.items()}
    data, tuned = output / "data", output / "tuned"
    write_splits(splits, data)

    lm = keras_gpt.LanguageModel.from_pretrained(model, dtype=dtype)
    lm.tasks = {"summarize": {"instruction": INSTRUCTION}}  # asked alike, before too
    measure("before", lm, data, max_new_tokens)
    started = time.monotonic()
    config = runs.FinetuneConfig(
        data=str(data),
        model=model,
        output=str(tuned),
        instruction=INSTRUCTION,
        epochs=epochs,
        batch_size=2,
        dtype=dtype,
        sample_tokens=0,
    )
    lm = finetune(config)
    print(f"tuned in {(time.monotonic() - started) / 60:.1f} minutes")
    measure("after", lm, data, max_new_tokens)

    lm = keras_gpt.LanguageModel.load(tuned, dtype="float32")  # as a server computes
    lm.merge_adapter()
    started = time.monotonic()
    folder = lm.export(
        output / "served" / "docs", next_version=True, max_new_tokens=max_new_tokens
    )
    print(f"exported to {folder} in {time.monotonic() - started:.0f} seconds")
    texts = [pair["text"] for pair in splits["test"][:SHOWN]]
    answers = lm.answer(texts, max_new_tokens)
    for pair, answer in zip(splits["test"], answers, strict=False):
        print(f"\nwanted: {pair['summary']}\nanswer: {answer}")
    write_json(output / "answers.json", dict(zip(texts, answers, strict=True)))
    if address is None:
        print(f"\nhow to serve it and ask it: {folder / 'README.md'}")
        return
    with Client(address, model="docs") as client:
        client.wait_until_ready()
        served = client.summarize(texts)
    equal = sum(a == b for a, b in zip(served, answers, strict=True))
    print(f"\nthe server at {address} gives {equal} of {len(texts)} answers alike")


def measure(when, lm, data, max_new_tokens):
    """Print loss and ROUGE on texts of modules that aren't trained on."""
    result = evaluation.evaluate_task(
        lm, data / "test.jsonl", max_new_tokens=max_new_tokens
    )
    print(
        f"{when}: loss {result.loss:.3f}, ROUGE-L {result.scores['rougeL']:.2f} of "
        f"{result.num_examples} texts"
    )


if __name__ == "__main__":
    typer.run(main)
