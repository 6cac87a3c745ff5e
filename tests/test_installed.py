import ast
import os
import sys
import tomllib
from pathlib import Path

import pytest

import keras_gpt
from keras_gpt import checkpoints, evaluation
from keras_gpt.installed import choose_backend
from keras_gpt.language_model.forms import take_form

ROOT = Path(__file__).parents[1]


@pytest.fixture
def before_keras(monkeypatch, tmp_path):
    """As in a process that hasn't imported Keras, where nobody chose a backend."""
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "")
    return monkeypatch


def test_without_tensorflow_keras_takes_another_backend(before_keras, tmp_path):
    # which Keras writes when it is first imported
    (tmp_path / "keras.json").write_text('{"backend": "tensorflow"}')
    choose_backend()
    assert os.environ["KERAS_BACKEND"] == "tensorflow"
    before_keras.setenv("KERAS_BACKEND", "")
    before_keras.setitem(sys.modules, "tensorflow", None)
    choose_backend()
    assert os.environ["KERAS_BACKEND"] == "jax"


def test_a_choice_of_backend_is_kept(before_keras, tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    choose_backend()
    assert os.environ["KERAS_BACKEND"] == ""  # Keras reads its file itself
    before_keras.setenv("KERAS_BACKEND", "jax")
    choose_backend()
    assert os.environ["KERAS_BACKEND"] == "jax"


def test_a_missing_backend_is_named(before_keras):
    before_keras.setenv("KERAS_BACKEND", "torch")
    before_keras.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"keras-gpt\[torch\].* another: tensorflow,"):
        choose_backend()
    before_keras.setitem(sys.modules, "tensorflow", None)
    before_keras.setitem(sys.modules, "jax", None)
    with pytest.raises(ImportError, match="Run: pip install jax"):
        choose_backend()


@pytest.mark.parametrize(
    ("extra", "module", "use"),
    [
        ("keras-hub", "keras_hub", lambda: checkpoints.find("keras_hub://gpt2")),
        ("metrics", "rouge_score", lambda: evaluation.score_summaries(["a"], ["a"])),
        ("metrics", "sacrebleu", lambda: evaluation.score_translations(["a"], ["a"])),
        ("grammar", "llguidance", lambda: take_form(None, (), {"regex": "a"})),
        (
            *("parquet", "pyarrow"),
            lambda: list(keras_gpt.data.read_documents("a.parquet")),
        ),
        (
            *("tensorflow", "tensorflow_serving"),
            lambda: keras_gpt.tf_serving.Client("localhost:8500", model="a"),
        ),
    ],
)
def test_a_missing_extra_is_named(extra, module, use, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    Path("a.parquet").touch()
    with pytest.raises(ImportError, match=rf"pip install 'keras-gpt\[{extra}\]'"):
        use()


def test_every_extra_that_is_asked_for_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {
        node.args[0].value
        for path in (ROOT / "keras_gpt").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require"
        if isinstance(node.args[0], ast.Constant)
    }
    assert asked
    assert asked <= set(project["optional-dependencies"])
