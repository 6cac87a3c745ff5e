"""What documents say of the code is so; their blocks are run by conftest.py."""

import re
import runpy
from pathlib import Path

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


def test_the_tests_of_what_works_where_exist():
    features = runpy.run_path(str(DOCS / "make_support.py"))["FEATURES"]
    page = (DOCS / "support.md").read_text("utf-8")
    assert re.findall(r"^\| (\S.*?) \| ", page, re.M)[1:] == list(features)
    for tests in features.values():
        for test in tests.values():
            file, name = re.match(r"(.+)::(\w+)", test).groups()
            assert f"\ndef {name}(" in (ROOT / file).read_text("utf-8")
