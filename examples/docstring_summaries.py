"""Pairs of a text and its summary, from docstrings, to fine-tune a model on.

The first line of a docstring summarizes the rest (PEP 257), and Python carries
thousands, so nothing is downloaded. With some of an installed package as well:

    python examples/docstring_summaries.py data/summaries [--package numpy]
"""

import ast
import hashlib
import importlib.util
import itertools
import json
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from keras_gpt.files import atomic_update

# tests, other people's copies, and what is neither library nor prose
SKIPPED_FOLDERS = {
    *("__pycache__", "_vendor", "_vendored", "dist-packages", "ensurepip", "idlelib"),
    *("kernel_tests", "lib2to3", "pydoc_data", "site-packages", "test", "testing"),
    *("tests", "third_party", "turtledemo"),
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FEWEST_WORDS, MOST_WORDS = 20, 400  # of a text
FEWEST_SUMMARY_WORDS, MOST_SUMMARY_WORDS = 3, 30
# A module with more pairs is always trained on: it would fill a split that shall be
# varied. Two thirds of the standard library's pairs are in others.
MOST_HELD_OUT = 40
HELD_OUT = 0.15
SECTION = re.compile(r"\W*[A-Z][\w ]{,20}(::?$|\n[-=~]{3})", re.MULTILINE)
LIST_ITEM = re.compile(r"\w+ --? |[\w.]+: ")
SENTENCE_END = re.compile(r"[.!?][\"')]* +(?=[A-Z])")
ROLE = re.compile(r":[\w:]+:`~?\.?([^`<]+)[^`]*`")  # :func:`name`, as Sphinx writes it


def build_pairs(packages: Iterable[str] = ()) -> list[dict[str, str]]:
    """Collect pairs from the standard library and from installed packages.

    Args:
        packages: Names as in `import`. Their sources are parsed, never imported.

    Returns:
        Records with `text`, its `summary` and the `module` of both.

    Raises:
        ModuleNotFoundError: A package isn't installed.
    """
    library = Path(sysconfig.get_path("stdlib"))
    places = [("", library), *(found for name in packages for found in locate(name))]
    pairs = {}
    for prefix, place in places:
        for module, path in find_modules(prefix, place):
            for docstring in read_docstrings(path):
                pair = split_docstring(docstring)
                if pair:
                    text, summary = pair
                    record = {"text": text, "summary": summary, "module": module}
                    pairs.setdefault(normalize(text), record)
    return list(pairs.values())


def locate(package: str) -> list[tuple[str, Path]]:
    """Where an installed package's files are: its name, and each folder or file."""
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top) if top else None
    places = list(spec.submodule_search_locations or [spec.origin]) if spec else []
    paths = [Path(place, *rest) for place in places]
    paths = [path if path.exists() else path.with_suffix(".py") for path in paths]
    found = [(package, path) for path in paths if path.exists()]
    if not found:
        raise ModuleNotFoundError(
            f"No sources of the package {package!r} are installed. Name it as `import` "
            "does, and install it first with pip."
        )
    return found


def find_modules(prefix: str, place: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and the path of each module in a folder, or of a file."""
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        parts = path.relative_to(place).with_suffix("").parts
        if SKIPPED_FOLDERS.isdisjoint(parts):
            name = ".".join([prefix, *parts] if prefix else parts)
            yield name.removesuffix(".__init__"), path


def read_docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a module, of its classes and of its functions."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of its escape sequences
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates, or meant for another Python
        return
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED):
            yield ast.get_docstring(node) or ""


def split_docstring(docstring: str) -> tuple[str, str] | None:
    """The prose of a docstring and its summary, or None if it lacks one of them."""
    first, *others = re.split(r"\n\s*\n", ROLE.sub(r"`\1`", docstring))
    summary = " ".join(first.split())
    if summary[-1:].isalnum():
        summary += "."  # which many forget
    # arguments, examples and references have sections, at the end
    body = itertools.takewhile(lambda other: not SECTION.match(other), others)
    paragraphs = [" ".join(part.split()) for part in body if is_prose(part)]
    text = "\n\n".join(paragraphs)
    is_pair = (
        is_summary(summary)
        and FEWEST_WORDS <= len(text.split()) <= MOST_WORDS
        and not is_repeated(summary, text)
    )
    return (text, summary) if is_pair else None


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is of whole sentences, not a section, a list or code."""
    return (
        not paragraph[:1].islower()  # which goes on after a list or a formula
        and all(re.match(r"[\w\"'`(]", line) for line in paragraph.splitlines())
        and not LIST_ITEM.match(paragraph)
        and "\\" not in paragraph  # of a formula
        and paragraph.rstrip("\"')`").endswith((".", "!", "?"))
    )


def is_summary(line: str) -> bool:
    """Whether a line is one sentence of words, rather than a signature or a title."""
    return (
        line[:1].isupper()
        and line.endswith(".")
        and not SENTENCE_END.search(line)
        and FEWEST_SUMMARY_WORDS <= len(line.split()) <= MOST_SUMMARY_WORDS
        and not re.search(r"->|>>>|\w+\(.*, ?.*\)", line)
    )


def is_repeated(summary: str, text: str) -> bool:
    """Whether the summary could be copied from the text or from its first sentence."""
    words = set(normalize(summary).split())
    lead = set(normalize(SENTENCE_END.split(text)[0]).split())
    return len(words & lead) >= 0.8 * len(words) or normalize(summary) in normalize(
        text
    )


def normalize(text: str) -> str:
    """What is left of a text when case, spaces and punctuation don't count."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def split_by_module(
    pairs: Sequence[dict[str, str]], seed: int = 0
) -> dict[str, list[dict[str, str]]]:
    """Share pairs out to `train`, `validation` and `test`, each top module to one.

    A module stays where it is when packages are added.
    """
    modules = [pair["module"].partition(".")[0] for pair in pairs]
    counts = Counter(modules)
    splits = {"train": [], "validation": [], "test": []}
    for pair, module in zip(pairs, modules, strict=True):
        held_out = 0 if counts[module] > MOST_HELD_OUT else HELD_OUT
        splits[choose_split(module, seed, held_out)].append(pair)
    return splits


def choose_split(key: str, seed: int, held_out: float = 0.1) -> str:
    """Choose by a hash of the key; validation and test each get a part `held_out`."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < held_out:
        return "test"
    return "validation" if position < 2 * held_out else "train"


def write_splits(splits: dict[str, list[dict[str, str]]], output: Path) -> None:
    """Write each split as JSON Lines, and print how many records and a few of them."""
    with atomic_update(output) as temporary:
        for name, records in splits.items():
            lines = [json.dumps(record, ensure_ascii=False) for record in records]
            # docstrings may spell halves of surrogate pairs, which are no text
            text = "".join(f"{line}\n" for line in lines).encode(errors="replace")
            (temporary / f"{name}.jsonl").write_bytes(text)
    total = sum(map(len, splits.values()))
    for name, records in splits.items():
        part = len(records) / total
        print(f"{output / name}.jsonl: {len(records):,} records ({part:.0%})")
    for record in splits["train"][:: len(splits["train"]) // 3 + 1]:
        print(f"\n{json.dumps(record, indent=2, ensure_ascii=False)}")


def main(
    output: Annotated[Path, typer.Argument(help="Folder to write to.")],
    package: Annotated[
        list[str] | None, typer.Option(help="An installed package; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
) -> None:
    """Write pairs of a text and its summary as train, validation and test.jsonl."""
    try:
        pairs = build_pairs(package or [])
    except ModuleNotFoundError as error:
        raise typer.BadParameter(str(error), param_hint="--package") from error
    write_splits(split_by_module(pairs, seed), output)


if __name__ == "__main__":
    typer.run(main)
