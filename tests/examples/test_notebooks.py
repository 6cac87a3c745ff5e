import json
import os
import re
import runpy
import warnings
from pathlib import Path

import jupytext
import keras
import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "notebooks"
MAKER = runpy.run_path(str(FOLDER / "make_notebooks.py"))
SHORT = {"MODEL": "base", "CORPUS": "corpus.jsonl", "MAX_NEW_TOKENS": 4}
# by notebook: what else replaces its parameters, and what it then prints
NOTEBOOKS = {
    "1_text_to_gpt": ({"STEPS": 2}, r"[0-8]\.\d\d bits per byte"),
    "2_attention": ({}, r"layers, heads, tokens, tokens: \(1, 2, "),
    "3_tokenizers": (
        {"VOCABULARIES": [360, 380], "STEPS": 1},
        r"(?s)(\d\.\d{3} bits per byte.*){4}",
    ),
    "4_summarize": (
        {"TRAIN": 6, "TEST": 3},
        r"(?s)loss .* ROUGE-L .*loss .* ROUGE-L .*tokenizer.json",
    ),
    "5_translate": ({"TRAIN": 6, "TEST": 3}, r"chrF of a text: [+-]\d"),
    "6_preferences": ({"EPOCHS": 1}, r"(?s)words before.*as before: True"),
    "7_sampling": ({}, r"(?s)repetition_penalty=1.0: .*repetition_penalty=1.2: "),
    "8_serve": ({}, r"the same as before the export: True"),
    "9_many_devices": (
        {"LAYERS": 1, "STEPS": 6},
        r"largest difference: (0|\d.\de-0[6-9])",
    ),
}
# TensorFlow exports in this process
BACKENDS = {"8_serve": "tensorflow", "9_many_devices": "jax"}


@pytest.fixture
def _folder(tmp_path, small_base, monkeypatch):
    """Where a notebook runs: with a small model and a small corpus."""
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(small_base)
    text = (ROOT / "docs" / "training.md").read_text("utf-8").encode("ascii", "ignore")
    texts = [text[i : i + 800].decode() for i in range(0, 19_000, 800)]
    lines = [json.dumps({"text": text}) for text in texts]
    Path("corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.every_backend
@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_in_a_short_form(name, monkeypatch, capsys):
    if keras.backend.backend() != BACKENDS.get(name, "torch"):
        pytest.skip("run on another backend")
    changed, expected = NOTEBOOKS[name]
    shown, namespace = [], {"__name__": "__main__"}
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    notebook = jupytext.read(FOLDER / f"{name}.py")
    with warnings.catch_warnings(action="default"):  # as for users
        for cell in notebook.cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, name, "exec"), namespace)
            if "parameters" in cell.metadata.get("tags", []):
                assert {*changed} <= {*namespace}
                short = {**SHORT, **changed}
                namespace |= {key: short[key] for key in short if key in namespace}
    plt.close("all")
    assert re.search(expected, capsys.readouterr().out)
    assert len(shown) == sum(cell.source.count("plt.show()") for cell in notebook.cells)


def test_notebooks_are_made_of_their_scripts():
    scripts = MAKER["scripts"]()
    assert [script.stem for script in scripts] == [*NOTEBOOKS]
    for script in scripts:
        notebook = script.with_suffix(".ipynb").read_text(encoding="utf-8")
        assert notebook == MAKER["make"](script), "run: make notebooks"
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert readme == MAKER["make_readme"](), "run: make notebooks"


def test_setup_says_when_it_is_too_late_for_a_backend(monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", keras.backend.backend())
    setup = (FOLDER / "setup_cell.py").read_text()
    other = "jax" if keras.backend.backend() == "torch" else "torch"
    with pytest.raises(RuntimeError, match=rf"Too late for {other}.*Restart session"):
        exec(setup.replace('BACKEND = "jax"', f'BACKEND = "{other}"'), {})


def test_setup_tries_the_index_the_address_and_a_wheel(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("keras_gpt-1.0-py3-none-any.whl").touch()
    setup = (FOLDER / "setup_cell.py").read_text()
    definitions = setup[: setup.index("# Keras takes its backend")]
    namespace, tried = {}, []
    exec(
        definitions.replace(
            'PACKAGE, OTHERS = "keras-gpt"', 'PACKAGE, OTHERS = "keras-gpt[metrics]"'
        ),
        namespace,
    )

    def run(command, **options):
        tried.append(command[-1])
        return type("Result", (), {"returncode": 1})

    monkeypatch.setattr(namespace["subprocess"], "run", run)
    with pytest.raises(ImportError, match="Upload its wheel"):
        namespace["install"]()
    assert tried[0] == "keras-gpt[metrics]>=0.1"
    assert re.fullmatch(r"keras-gpt\[metrics\] @ git\+https://.*", tried[1])
    assert tried[2].endswith(".whl[metrics]")
