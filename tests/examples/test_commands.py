"""The commands of `keras-gpt` that the pages show, each run on something small."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer.testing

from keras_gpt_cli import app

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / "README.md", ROOT / "examples" / "tf_serving" / "README.md"),
    *sorted((ROOT / "docs").glob("*.md")),
]
# what stands for what isn't here
INSTEAD = {
    "smollm2": "small",
    "s3://texts/sample/*.jsonl": "texts/*.jsonl",
    "s3://texts/all": "texts",
}
SMALL = ["model.embedding_dimension=16", "model.num_heads=2", "model.num_layers=1"]
SMALL += ["model.context_length=64", "vocab_size=300", "batch_size=2"]
SMALL += ["warmup_steps=1", "sample_tokens=0"]
# by command or option: what makes it short
SHORT = {
    "tokenize": ["--vocab-size", "300"],
    "train": [*SMALL, "steps=2"],
    "--resume": ["steps=4"],
    "sweep": [*SMALL, "steps=2", "--trials", "2"],
    "finetune": ["epochs=1"],
    "summarize": ["--max-new-tokens", "4"],
    "--task": ["--max-new-tokens", "4"],
}
# these are only parsed: what they would do is shown elsewhere
PARSED = {
    "quickstart": "with fewer steps: tests/test_cli.py",
    "serve": "until it is stopped: tests/server/",
    "export": "by TensorFlow: test_tf_serving.py",
    "ray": "with workers: tests/journeys/test_ray.py",
    "--devices": "with JAX: tests/training/test_devices.py and test_multi_host.py",
}


def commands_of(page):
    """The words of each, without the variables before and `keras-gpt`."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    for block in re.findall(r"(?ms)^```(?:ba)?sh\n(.*?)^```", text):
        for command in re.findall(r"(?m)^(?:\w+=\S+ )*keras-gpt (.*)", block):
            yield shlex.split(command, comments=True)


WITH_COMMANDS = [page for page in PAGES if any(commands_of(page))]


def keras_gpt(*words):
    """Run a command in this process."""
    result = typer.testing.CliRunner().invoke(app, words)
    assert result.exit_code == 0, (words, result.output, result.exception)


def write_records(path, *records):
    """Write JSON Lines."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), "utf-8")


@pytest.fixture(scope="module")
def prepared(small_base, tmp_path_factory):
    """The folder in which the pages' commands find what they name."""
    folder = tmp_path_factory.mktemp("pages")
    text = "".join(f"ROMEO: {n} bottles of beer.\n\n" for n in range(200))
    for name in ("input.txt", "report.txt", "README.md"):
        (folder / name).write_text(text)
    write_records(folder / "texts" / "all.jsonl", {"text": text[:900]}, {"text": text})
    pair = {"text": text[:200], "summary": "Bottles."}
    for name in ("examples.jsonl", "test.jsonl"):
        write_records(folder / name, *[pair] * 4)
    write_records(folder / "prompts.jsonl", {"prompt": "1 bottle"}, {"prompt": "2"})
    (folder / "cat.json").write_text('{"enum": ["tom", "kitty"]}')
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    [shown] = re.findall("```yaml\n(# run.yaml\n.*?)```", page, re.DOTALL)
    (folder / "run.yaml").write_text(shown)
    (folder / "examples").symlink_to(ROOT / "examples")
    for name in ("small", "model"):
        (folder / name).symlink_to(small_base)
    run = folder / "runs" / "quickstart"
    source = f"corpus={folder / 'input.txt'}"
    keras_gpt("train", *SHORT["train"], source, f"output={run}")
    for name in ("slow", "middle", "fast"):
        shutil.copytree(run, run.with_name(name))
    return folder


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_every_command_of_a_page_runs(page, prepared, tmp_path, monkeypatch):
    folder = shutil.copytree(prepared, tmp_path / "folder", symlinks=True)
    monkeypatch.chdir(folder)
    for words in commands_of(page):
        words = [INSTEAD.get(word, word) for word in words]
        if PARSED.keys() & {*words}:
            command = typer.main.get_command(app).commands[words[0]]
            command.make_context(words[0], words[1:])
            continue
        for name, more in SHORT.items():
            words += more if name in words else []
        if words[0] == "train" and "--resume" not in words:
            shutil.rmtree("runs/mine", ignore_errors=True)  # of the block before
        keras_gpt(*words)
