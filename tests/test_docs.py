"""What documents say of the code is so.

Their blocks of Python are run by conftest.py, their commands by
examples/test_commands.py.
"""

import re
import runpy
from pathlib import Path

import keras
import pytest

import keras_gpt
from keras_gpt_cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def read_rows(name):
    """Rows of tables whose last cell is a file: what is in backticks, and the file."""
    text = (DOCS / name).read_text("utf-8")
    for line in re.findall(r"^\| .*`keras_gpt/[\w/]+\.py` \|$", text, re.M):
        *code, file = re.findall("`([^`]+)`", line)
        yield code, (ROOT / file).read_text("utf-8")


def test_each_formula_is_computed_by_the_line_that_is_named():
    rows = list(read_rows("how_it_works.md"))
    assert len(rows) > 15
    for lines, source in rows:
        assert lines
        for line in lines:
            assert line in source


def test_the_files_of_the_specification_have_its_names():
    rows = list(read_rows("specification.md"))
    assert len(rows) > 10
    for names, source in rows:
        words = [word for name in names for word in re.findall(r"\w+", name)[-1:]]
        assert any(re.search(rf"\b{word}\b", source) for word in words), names


def test_every_command_is_listed():
    listed = (DOCS / "commands.md").read_text("utf-8")
    for command in app.registered_commands:
        assert f"`keras-gpt {command.name}" in listed


def test_the_reference_has_every_public_name():
    pages = [path.read_text("utf-8") for path in DOCS.glob("reference/*.md")]
    shown = re.findall(r"^::: ([\w.]+)$", "\n".join(pages), re.M)
    for name in sorted({*keras_gpt.__all__} - {"__version__"}):
        value = getattr(keras_gpt, name)
        module = getattr(value, "__module__", "keras_gpt.config")  # dictionaries
        place = getattr(value, "__path__", None) and value.__name__
        place = place or f"{module}.{name}"
        assert any(f"{place}.".startswith(f"{part}.") for part in shown), name


def read_support():
    """What makes the table, and the rows of the page: feature to cells."""
    page = (DOCS / "support.md").read_text("utf-8")
    rows = (line.split("|")[1:-1] for line in re.findall(r"^\| \S.*", page, re.M)[1:])
    cells = {name.strip(): [cell.strip() for cell in row] for name, *row in rows}
    return runpy.run_path(str(DOCS / "make_support.py")), cells


@pytest.mark.every_backend
def test_what_is_said_to_work_here_runs_here(request):
    config, here = request.config, keras.backend.backend()
    if "tests" not in {Path(arg).name for arg in config.args} or config.option.keyword:
        pytest.skip("asks which of all tests run")
    made, cells = read_support()
    collected = made["Collected"](here == "torch")
    collected.pytest_collection_finish(request.session)
    for feature, tests in made["FEATURES"].items():
        for precision, cell in zip(made["PRECISIONS"], cells[feature], strict=True):
            runs = made["is_run"](tests.get(precision), collected.names)
            is_said = cell == "all" or made["BACKENDS"][here] in cell
            assert is_said == runs, f"run docs/make_support.py: {feature}, {precision}"


def test_the_tests_of_what_works_where_exist():
    made, cells = read_support()
    assert list(cells) == list(made["FEATURES"])
    for tests in made["FEATURES"].values():
        for test in tests.values():
            file, name = re.match(r"(.+)::(\w+)", test).groups()
            assert f"\ndef {name}(" in (ROOT / file).read_text("utf-8")
