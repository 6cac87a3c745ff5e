"""What people get wrong most: docs/errors.md quotes what they are told."""

import re
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_gpt
from keras_gpt import checkpoints, runs
from keras_gpt.installed import choose_backend, require
from keras_gpt.tokenizers import CharacterTokenizer

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
# title of a section: what the code there says
QUOTES = dict(
    re.findall(r"^### (.+)\n\n```text\n(.+)\n```", PAGE.read_text("utf-8"), re.M)
)


@pytest.fixture(scope="module")
def lm():
    tokenizer = CharacterTokenizer.train(["hello world"])
    config = keras_gpt.GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=8,
        embedding_dimension=8,
        num_layers=1,
        num_heads=2,
    )
    return keras_gpt.LanguageModel(keras_gpt.GPT(config), tokenizer)


def choose_too_late(patch):
    other = "jax" if keras.backend.backend() == "torch" else "torch"
    patch.setenv("KERAS_BACKEND", other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_backend()


def choose_what_is_missing(patch):
    patch.delitem(sys.modules, "keras")
    patch.setenv("KERAS_BACKEND", "torch")
    patch.setitem(sys.modules, "torch", None)
    choose_backend()


def require_what_is_missing(patch):
    patch.setitem(sys.modules, "fastapi", None)
    require("server", "keras-gpt serve", "fastapi")


def train(folder, **fields):
    corpus = folder / "input.txt"
    corpus.write_text("hello world\n" * 100)
    model = {
        "context_length": 8,
        "embedding_dimension": 8,
        "num_layers": 1,
        "num_heads": 2,
    }
    fields = {"output": str(folder / "run"), "vocab_size": 260, "model": model} | fields
    runs.train(runs.RunConfig(corpus=str(corpus), **fields))


MISTAKES = {
    "KERAS_BACKEND is set too late": lambda lm, patch, _: choose_too_late(patch),
    "The backend isn't installed": lambda lm, patch, _: choose_what_is_missing(patch),
    "An extra isn't installed": lambda lm, patch, _: require_what_is_missing(patch),
    "Several devices without JAX": lambda lm, patch, _: (
        patch.setattr(keras.backend, "backend", lambda: "torch"),
        keras_gpt.training.make_distribution("fsdp:4"),
    ),
    "Fitting before compiling": lambda lm, *_: lm.model.fit(np.zeros((2, 4), int)),
    "Texts where token ids are wanted": lambda lm, *_: lm.model("hello"),
    "Rows of unequal length": lambda lm, *_: lm.model([[1, 2], [3]]),
    "An id that the vocabulary doesn't have": lambda lm, *_: lm.model([[1, 50]]),
    "A sequence longer than the context": lambda lm, *_: lm.model([[0] * 9]),
    "A loss of probabilities": lambda lm, *_: lm.model.compile(
        loss="sparse_categorical_crossentropy"
    ),
    "Heads that don't divide the width": lambda *_: keras_gpt.GPTConfig(
        vocab_size=8,
        context_length=8,
        embedding_dimension=64,
        num_layers=1,
        num_heads=12,
    ),
    "A folder that isn't prepared": lambda *_: keras_gpt.data.load_batches(
        "data/none", "train", 2, 4
    ),
    "A run that is there already": lambda lm, patch, folder: (
        lm.save(folder),
        train(folder, output=str(folder)),
    ),
    "Not enough memory": lambda lm, patch, folder: train(folder, batch_size=10**9),
    "The loss became infinite": lambda lm, patch, folder: train(
        folder, learning_rate=1e30, steps=2, batch_size=4, sample_tokens=0
    ),
    "The model has no generate": lambda lm, *_: lm.model.generate("hello"),
    "A model without a tokenizer": lambda lm, *_: keras_gpt.LanguageModel(
        lm.model, None
    ),
    "A tokenizer of another model": lambda lm, *_: keras_gpt.LanguageModel(
        lm.model, CharacterTokenizer.train(["of many other letters"])
    ),
    "Token ids where texts are wanted": lambda lm, *_: lm.generate([1, 2]),
    "A character that the tokenizer doesn't know": lambda lm, *_: lm.generate("X"),
    "A prompt longer than the context": lambda lm, *_: lm.generate(
        "hello world", 4, num_beams=2
    ),
    "Another library's name for an argument": lambda lm, *_: lm.generate(
        "hello", max_tokens=4
    ),
    "A model that can't chat": lambda lm, *_: lm.chat(
        [{"role": "user", "content": "hello"}]
    ),
    "There is no such model": lambda *_: checkpoints.find("smollm3"),
}


@pytest.mark.parametrize("title", MISTAKES)
def test_a_mistake_gets_the_answer_that_the_page_has(lm, monkeypatch, tmp_path, title):
    with pytest.raises((Exception, Warning)) as caught:
        MISTAKES[title](lm, monkeypatch, tmp_path)
    told = f"{caught.type.__name__}: {caught.value}"
    pattern = re.escape(QUOTES.get(title, "")).replace("…", ".+")
    assert re.fullmatch(pattern, told), told


def test_the_page_has_these_mistakes_alone():
    assert list(QUOTES) == list(MISTAKES)
