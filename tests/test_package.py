import ast
import importlib.metadata
import importlib.resources
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_gpt
from keras_gpt.quiet import quiet_tensorflow

PACKAGE = Path(keras_gpt.__file__).parent


# prints the top-level names in `sys.modules` after each import
PROGRAM = """
import json, sys
for name in sys.argv[1:]:
    __import__(name)
    print(json.dumps(sorted({module.split(".")[0] for module in sys.modules})))
"""
# trains and generates where none of `missing` is installed
LITTLE = """
for name in missing - set(sys.modules):
    sys.modules[name] = None
import keras_gpt
config = keras_gpt.GPTConfig(vocab_size=5, context_length=8, embedding_dimension=4,
                             num_layers=1, num_heads=1)
model = keras_gpt.GPT(config)
keras_gpt.training.compile_model(model)
model.fit([[0, 1, 2, 3]], verbose=0)
model.get_weights()
keras_gpt.generate(model, [[1]], max_new_tokens=2)
"""


def import_in_a_process(backend, *names, then=""):
    """What is loaded after each import, and what the imports say."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM + then, *names],
        env=environment,
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    loaded = [set(json.loads(line)) for line in process.stdout.splitlines()]
    return loaded, process.stderr


def test_import_loads_no_heavy_library_and_a_model_needs_none():
    heavy = {
        "fastapi",
        "filelock",
        "gguf",
        "grain",
        "grpc",
        "huggingface_hub",
        "jinja2",
        "keras_hub",
        "matplotlib",
        "pyarrow",
        "pydantic",
        "requests",
        "rich",
        "safetensors",
        "sentencepiece",
        "tensorboard",
        "tensorflow",
        "tensorflow_text",
        "tokenizers",
        "typer",
        "yaml",
    }
    loaded, _ = import_in_a_process(
        "torch",  # compiles nothing
        *("keras", "keras_gpt", "keras_gpt.tf_serving"),
        then=f"missing = {heavy}{LITTLE}",
    )
    keras_loads, keras_gpt_loads, serving_loads = loaded
    assert not heavy & (keras_gpt_loads - keras_loads)
    assert "tensorflow" not in serving_loads


def test_tensorflow_starts_in_silence():
    _, errors = import_in_a_process("tensorflow", "keras_gpt")
    assert errors == ""


@pytest.mark.parametrize(("level", "shown"), [("2", 1), ("0", 4)])
def test_what_else_is_said_meanwhile_is_shown(capfd, monkeypatch, level, shown):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    lines = [
        "WARNING: All log messages before absl::InitializeLog() is called are written",
        "I0000 00:00:1795861861.1   23 port.cc:153] oneDNN custom operations are on.",
        "normalizer.cc(51) LOG(INFO) precompiled_charsmap is empty.",
        "E0000 00:00:1795861861.2   23 cuda.cc:52] no device",
    ]
    with quiet_tensorflow():
        os.write(2, "".join(f"{line}\n" for line in lines).encode())
    assert capfd.readouterr().err.splitlines() == lines[-shown:]


def test_version_is_that_of_the_installed_package():
    assert keras_gpt.__version__ == importlib.metadata.version("keras-gpt")


def test_public_names_are_there_and_all_that_is_listed():
    for name in keras_gpt.__all__:
        assert hasattr(keras_gpt, name), name
    assert {"LanguageModel", "evaluation", "runs", "tf_serving"} < set(dir(keras_gpt))
    assert keras_gpt.serving.Client is keras_gpt.tf_serving.Client  # its old name
    assert dir(keras_gpt) == sorted(keras_gpt.__all__)
    with pytest.raises(AttributeError, match="'keras_gpt' has no attribute 'servin'"):
        keras_gpt.servin  # noqa: B018


def test_type_checkers_find_py_typed():
    assert importlib.resources.files("keras_gpt").joinpath("py.typed").is_file()


def test_the_map_has_a_line_for_every_file():
    root = PACKAGE.parent
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- `(\S+\.py)`: ", text, re.MULTILINE)
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    files += [path.relative_to(root) for path in root.glob("keras_gpt_cli/**/*.py")]
    names = {path.as_posix() for path in files if path.name != "__init__.py"}
    assert sorted(listed) == sorted(names)
    # what else it names is there too
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert name in names or (root / name).is_file(), name


def test_no_module_imports_the_private_src_of_another_package():
    private = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in imported_names(node)
        if "src" in name.split(".")
    ]
    assert private == []


def imported_names(node):
    """What an import statement names, as dotted names; of other nodes nothing."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module or ''}.{alias.name}" for alias in node.names]
    return []
