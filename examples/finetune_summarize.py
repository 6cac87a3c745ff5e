"""Teach a chat model to summarize documentation, and measure what it learned.

The first line of each docstring in Python's library summarizes the rest: the data are
on every machine. Beside the tuned model stand the same model before it was tuned, the
text's first sentence, and a small GPT trained on nothing but these data:

    KERAS_BACKEND=torch python examples/finetune_summarize.py runs/summaries
"""

import dataclasses
import random
from pathlib import Path
from typing import Annotated

import typer
from docstring_summaries import SENTENCE_END, build_pairs, split_by_module, write_splits
from rich.console import Console
from rich.table import Table

import keras_gpt
from keras_gpt import evaluation, runs
from keras_gpt.files import write_json

INSTRUCTION = "Write the first line of the docstring that goes on as follows."


def main(
    output: Annotated[Path, typer.Argument(help="Folder for data, runs and results.")],
    model: Annotated[str, typer.Option(help="The model to tune.")] = "smollm2",
    package: Annotated[
        list[str] | None, typer.Option(help="Train on its docstrings too.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Rounds of fine-tuning.")] = 2.0,
    scratch_epochs: Annotated[float, typer.Option(help="Of the small GPT.")] = 4.0,
    dtype: Annotated[str, typer.Option(help="Of the model to tune.")] = "bfloat16",
    limit: Annotated[
        int | None, typer.Option(help="Use only so many pairs of each split.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of split, adapters and order.")] = 0,
) -> None:
    """Build the data, tune, and print a table of ROUGE scores."""
    splits = split_by_module(build_pairs(package or []), seed)
    splits = {name: draw(pairs, limit, seed) for name, pairs in splits.items()}
    data = output / "data"
    write_splits(splits, data)
    texts = [pair["text"] for pair in splits["test"]]
    references = [pair["summary"] for pair in splits["test"]]

    summaries = {"first sentence": [SENTENCE_END.split(text)[0] for text in texts]}
    lm = keras_gpt.LanguageModel.from_pretrained(model, dtype=dtype)
    summaries["before"] = summarize(lm, texts)
    lm.tasks = {"summarize": {"instruction": INSTRUCTION}}
    summaries["before, told of docstrings"] = summarize(lm, texts)

    common = {"data": str(data), "seed": seed, "sample_tokens": 0}
    tuned = finetune(
        runs.FinetuneConfig(
            model=model,
            output=str(output / "tuned"),
            instruction=INSTRUCTION,
            dtype=dtype,
            epochs=epochs,
            batch_size=2,
            **common,
        )
    )
    minutes = runs.read_result(output / "tuned")["seconds"] / 60
    summaries["after"] = summarize(tuned, texts)

    write_untrained(splits["train"], output / "untrained")
    small = finetune(
        runs.FinetuneConfig(
            model=str(output / "untrained"),
            output=str(output / "from_scratch"),
            lora_rank=0,
            learning_rate=1e-3,
            weight_decay=0.1,
            epochs=scratch_epochs,
            batch_size=8,
            **common,
        )
    )
    summaries["small GPT from scratch"] = summarize(small, texts)

    report(summaries, references, output, minutes)


def draw(pairs, limit, seed):
    """As many pairs as `limit` says, at random, or all of them."""
    if limit is None or limit >= len(pairs):
        return pairs
    return random.Random(seed).sample(pairs, limit)


def finetune(config):
    """Do a run, or go on with the one that was stopped in its folder."""
    is_there = (Path(config.output) / runs.CONFIG_FILE).is_file()
    return runs.finetune(config, resume=is_there)


def summarize(lm, texts):
    """Summaries of one line, greedy."""
    written = lm.summarize(texts, max_new_tokens=32, batch_size=16)
    return [(text.splitlines() or [""])[0] for text in written]


def write_untrained(pairs, folder):
    """Write a small GPT with random weights, with a tokenizer of the data's words."""
    tokenizer = keras_gpt.BytePairTokenizer.train(
        (pair[field] for pair in pairs for field in ("text", "summary")), 2048
    )
    config = keras_gpt.GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=1024,
        embedding_dimension=192,
        num_layers=4,
        num_heads=6,
        position_embedding="rotary",
        dropout_rate=0.1,
    )
    keras_gpt.LanguageModel(keras_gpt.GPT(config), tokenizer).save(folder)


def report(summaries, references, output, minutes):
    """Print a table and write it with all summaries as JSON."""
    scores = {
        name: evaluation.score_summaries(written, references)
        for name, written in summaries.items()
    }
    titles = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    table, results = compare(scores, titles)
    signature = scores["after"].signatures["rougeL"]
    console = Console()
    console.print(table)
    console.print(
        f"{len(references)} texts of modules that were not trained on; behind the gain "
        f"in ROUGE-L its 95% bootstrap interval. ROUGE: {signature}. Fine-tuning took "
        f"{minutes:.0f} minutes.",
        highlight=False,
    )
    for i in range(0, len(references), len(references) // 3 + 1):
        console.print(f"\nreference: {references[i]}", highlight=False)
        for name, written in summaries.items():
            console.print(f"{name}: {written[i]}", highlight=False, markup=False)
    content = {
        "signature": signature,
        "minutes": minutes,
        "results": results,
        "references": references,
        "summaries": summaries,
    }
    write_json(output / "results.json", content)


def compare(scores, titles):
    """Put "after" beside the others: a table, and what it shows as a dictionary.

    Args:
        scores: The `MetricScores` of each.
        titles: By metric how to call it; gains are measured by the last.
    """
    *_, metric = titles
    tuned = scores["after"].by_text[metric]
    gain_title = f"after is better by, in a text's {titles[metric]}"
    table = Table("", *titles.values(), gain_title)
    results = {}
    for name, found in scores.items():
        gain = evaluation.bootstrap_interval(tuned, found.by_text[metric])
        by = f"{gain.mean:.2f} ({gain.low:.2f} to {gain.high:.2f})"
        values = [f"{found.scores[key]:.2f}" for key in titles]
        table.add_row(name, *values, "" if name == "after" else by)
        results[name] = {"scores": found.scores, "gain": dataclasses.asdict(gain)}
    return table, results


if __name__ == "__main__":
    typer.run(main)
