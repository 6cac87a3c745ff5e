"""Pairs of a short text and its translation, from gettext, to fine-tune a model on.

Python packages carry what their users read in many languages, as compiled catalogues
of messages, so the only download is a package:

    pip install babel django
    python examples/gettext_translations.py data/german --package django --target de

`--package` may be repeated. A folder or a wheel will do too: for wheels of large
applications, run `pip download --no-deps wagtail`.
"""

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Annotated

import typer
from babel.messages.mofile import read_mo
from docstring_summaries import choose_split, locate, normalize, write_splits

MOST_WORDS = 40  # of either side
PLACEHOLDER = re.compile(
    r"%\(\w+\)[#0 +-]*[\d.]*[a-zA-Z]"  # %(name)s
    r"|%[#0+-]*[\d.]*[a-zA-Z](?![a-zA-Z])"  # %s
    r"|\{[^{}]*\}"  # {name}
)
MARKUP = re.compile(r"<\S|[&_]\w|https?:|[{}`\\|]")  # and marks of shortcut keys


def build_pairs(
    packages: Iterable[str], target: str, source: str = "en"
) -> list[dict[str, str]]:
    """Collect translations from the catalogues of packages.

    Args:
        packages: Names of installed packages, folders or wheels.
        target: Language to translate to, as catalogues name it: de, pt_BR, zh_Hans.
        source: Language of the messages in the packages' code.

    Returns:
        Records with `source`, `target`, `source_language` and `target_language`, one
        for each source: the translation that is found most often.

    Raises:
        ValueError: A package has no catalogue of that language.
        ModuleNotFoundError: A package isn't there.
    """
    translations: dict[str, Counter] = {}
    for package in packages:
        for content in read_catalogues(package, target):
            for pair in read_messages(content):
                message, translation = (" ".join(text.split()) for text in pair)
                if is_translation(message, translation):
                    translations.setdefault(message, Counter())[translation] += 1
    return [
        {
            "source": message,
            "target": counts.most_common(1)[0][0],
            "source_language": source,
            "target_language": target,
        }
        for message, counts in translations.items()
    ]


def read_catalogues(package: str, language: str) -> list[bytes]:
    """Read the catalogues of a language below a package, a folder or in a wheel."""
    place = Path(package)
    if zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".mo")]
            files = [(PurePath(name), wheel.read(name)) for name in names]
    else:
        folders = [place] if place.is_dir() else [path for _, path in locate(package)]
        paths = [path for folder in folders for path in sorted(folder.rglob("*.mo"))]
        files = [(path, path.read_bytes()) for path in paths]
    by_language = {}
    for path, content in files:  # .../de/LC_MESSAGES/django.mo
        by_language.setdefault(path.parent.parent.name, []).append(content)
    if language not in by_language:
        found = ", ".join(sorted(by_language)) or "no catalogue (.mo file) at all"
        raise ValueError(
            f"{package} has no catalogue of target={language!r}. It has: {found}."
        )
    return by_language[language]


def read_messages(catalogue: bytes) -> Iterator[tuple[str, str]]:
    """Yield the messages of a .mo file, each form of them, with their translations."""
    for message in read_mo(io.BytesIO(catalogue)):
        texts = message.id, message.string
        if message.pluralizable:
            yield from zip(*texts, strict=False)
        elif message.id:  # or else the catalogue's header
            yield texts


def is_translation(message: str, translation: str) -> bool:
    """Whether two texts differ, are short, and are words rather than a format."""
    texts = message, translation
    placeholders = [sorted(PLACEHOLDER.findall(text)) for text in texts]
    plain = [PLACEHOLDER.sub(" ", text) for text in texts]
    words = [re.findall(r"[^\W\d_]{2,}", text) for text in plain]
    return (
        normalize(message) != normalize(translation)
        and placeholders[0] == placeholders[1]
        and not any(map(MARKUP.search, plain))
        and all(
            max(1, len(placeholders[0])) <= len(found) <= MOST_WORDS for found in words
        )
    )


def split_by_source(
    pairs: Iterable[dict[str, str]], seed: int = 0
) -> dict[str, list[dict[str, str]]]:
    """Share pairs out to `train`, `validation` and `test`, 8 to 1 to 1.

    Sources that differ only in case or punctuation are kept together.
    """
    splits = {"train": [], "validation": [], "test": []}
    for pair in pairs:
        splits[choose_split(normalize(pair["source"]), seed)].append(pair)
    return splits


def main(
    output: Annotated[Path, typer.Argument(help="Folder to write to.")],
    package: Annotated[
        list[str],
        typer.Option(
            help="An installed package, a folder or a wheel; may be repeated."
        ),
    ],
    target: Annotated[str, typer.Option(help="Language to translate to, such as de.")],
    source: Annotated[str, typer.Option(help="Language of the packages' code.")] = "en",
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
) -> None:
    """Write pairs of a text and its translation as train, validation and test.jsonl."""
    try:
        pairs = build_pairs(package, target, source)
    except (ModuleNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    write_splits(split_by_source(pairs, seed), output)


if __name__ == "__main__":
    typer.run(main)
