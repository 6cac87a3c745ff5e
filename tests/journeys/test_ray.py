"""What Ray's workers write is what this process writes."""

import json
import random
import sys

import pytest

import keras_gpt_cli
from keras_gpt import (
    GPT,
    CharacterTokenizer,
    GPTConfig,
    LanguageModel,
    data,
    runs,
)
from keras_gpt.cluster import connected


@pytest.fixture
def run(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["keras-gpt", *map(str, arguments)])
        with pytest.raises(SystemExit) as raised:
            keras_gpt_cli.main()
        assert not raised.value.code

    return run


def write_records(path, field, texts):
    lines = [json.dumps({field: text}) for text in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_token_files_and_answers_of_ray_are_those_of_one_process(
    tmp_path, monkeypatch, run
):
    chooser = random.Random(0)
    texts = ["".join(chooser.choices("abc é", k=90)) for _ in range(300)]
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        write_records(source / f"{number}.jsonl", "text", texts[number::3])
    prompts = [text[: 1 + n % 9] for n, text in enumerate(texts[:21])]
    prompts = write_records(tmp_path / "prompts.jsonl", "prompt", prompts)
    tokenizer = CharacterTokenizer.train(texts, special_tokens=["<|endoftext|>"])
    tokenizer.save(tmp_path / "tokenizer")
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=16,
        embedding_dimension=16,
        num_layers=1,
        num_heads=2,
    )
    LanguageModel(GPT(config), tokenizer).save(tmp_path / "model")
    monkeypatch.setattr("keras_gpt.data.corpus.PART_BYTES", 4000)  # several of a file

    def work(folder, *engine, **options):
        folder.mkdir()
        about = (folder / "documents", "--tokenizer", tmp_path / "tokenizer")
        run("prepare", source, *about, *engine)
        run("tokenize", source, folder / "tokenizer", "--vocab-size", 300, *engine)
        data.prepare(source, folder / "tail", tokenizer, split="tail", **options)
        about = ("--file", prompts, "--output", folder / "answers.jsonl")
        controls = ("--max-new-tokens", 5, "--seed", 3, "--batch-size", 4)
        run("generate", tmp_path / "model", *about, *controls, *engine)
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    expected = work(tmp_path / "process")
    with connected("local", num_cpus=1):
        found = work(tmp_path / "ray", "--engine", "ray", engine="ray")
        with pytest.raises(FileNotFoundError, match="no file or folder"):
            runs.train_tokenizer("byte_pair", str(tmp_path / "none"), engine="ray")
    assert found == expected
