import importlib.util
import re
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import typer.testing

import keras_gpt
from keras_gpt import runs
from keras_gpt.files import write_json

# as in a process of their own, the examples import from their folder
sys.path.append(str(Path(__file__).parents[2] / "examples"))
summaries = importlib.import_module("docstring_summaries")
translations = importlib.import_module("gettext_translations")
zoo = importlib.import_module("zoo")


def run(main, *arguments):
    """What `typer.run(main)` gives with these arguments."""
    app = typer.Typer()
    app.command()(main)
    return typer.testing.CliRunner().invoke(
        app, list(map(str, arguments)), env={"COLUMNS": "200"}
    )


def read_splits(folder):
    """The records of each of the three files that a builder wrote."""
    assert sorted(path.name for path in folder.iterdir()) == [
        *("test.jsonl", "train.jsonl", "validation.jsonl")
    ]
    return {
        path.stem: [record for _, record in keras_gpt.data.read_records(path)]
        for path in folder.iterdir()
    }


def is_disjoint(splits, key):
    """Whether no two splits have a record with the same key."""
    keys = [{key(record) for record in records} for records in splits.values()]
    return sum(map(len, keys)) == len(set().union(*keys))


DOCSTRING = """Return what
was asked for

The answer is looked up in a table, which is made when
it is first needed and kept until this object is gone.

    >>> answer()

It isn't safe to use from :class:`~threading.Thread` objects. See `this`.

Args:
    key: What to ask.

Nobody sees that.
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What was printed and written for the standard library and a package."""
    folder = tmp_path_factory.mktemp("summaries")
    package = folder / "unimportable_package"
    (package / "tests").mkdir(parents=True)
    # Half of a surrogate pair, which can't be written; an escape, which warns.
    source = '"""' + DOCSTRING.replace("table", r"\ud800") + '"""\n"\\d"\n1 / 0\n'
    (package / "__init__.py").write_text(source)
    (package / "inner.py").write_text(source.replace("answer is", "list is"))
    (package / "copy.py").write_text(source)
    (package / "broken.py").write_text(source.replace("answer is", "file is") + "(")
    test = package / "tests" / "test_it.py"
    test.write_text(source.replace("answer is", "test is"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(folder)
        result = run(summaries.main, folder / "output", "--package", package.name)
    assert result.exit_code == 0, result.output
    return result.output, read_splits(folder / "output")


@pytest.fixture(scope="module")
def pairs(written):
    """The pairs of all three files."""
    return [pair for records in written[1].values() for pair in records]


def test_standard_library_gives_a_thousand_summaries_of_longer_texts(pairs):
    assert len(pairs) > 800  # 1,086 in Python 3.11; some systems leave modules out
    for pair in pairs:
        assert set(pair) == {"text", "summary", "module"}
        assert 20 <= len(pair["text"].split()) <= 400
        assert 3 <= len(pair["summary"].split()) <= 30
        assert pair["summary"].endswith(".")
        assert not re.search(r">>>|\n +", pair["text"])
        assert pair["summary"].casefold() not in pair["text"].casefold()


def test_summaries_of_a_package_are_added_without_importing_it(pairs):
    modules = [pair["module"] for pair in pairs]
    assert sorted(name for name in modules if "unimportable" in name) == [
        *("unimportable_package", "unimportable_package.inner")
    ]


def test_summaries_are_split_by_module(written, pairs):
    printed, splits = written
    assert is_disjoint(splits, lambda pair: pair["module"].split(".")[0])
    assert is_disjoint(splits, lambda pair: summaries.normalize(pair["text"]))
    for name, records in splits.items():
        assert f"{name}.jsonl: {len(records):,} records" in printed
        # 80/10/10, by modules of up to 40 pairs
        part = 0.8 if name == "train" else 0.1
        assert len(records) / len(pairs) == pytest.approx(part, abs=0.06)


def test_the_seed_decides_the_split_of_summaries(pairs):
    splits = summaries.split_by_module(pairs, seed=1)
    assert splits == summaries.split_by_module(pairs, seed=1)
    assert splits != summaries.split_by_module(pairs, seed=0)


def test_a_docstring_becomes_its_prose_and_its_first_sentence():
    assert summaries.split_docstring(DOCSTRING) == (
        "The answer is looked up in a table, which is made when it is first needed and "
        "kept until this object is gone.\n\n"
        "It isn't safe to use from `threading.Thread` objects. See `this`.",
        "Return what was asked for.",
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Return what\nwas asked for", "answer(key, default=None) -> str"),
        ("Return what\nwas asked for", "Return it. Or else, return another."),
        ("Return what\nwas asked for", "Answers"),
        ("Return what\nwas asked for", "The answer is looked up in a table."),
        ("The answer is", "- The answer is"),
        ("The answer is", "key -- the answer is"),
        ("The answer is", "Note:\n    The answer is"),
    ],
)
def test_other_docstrings_are_left_out(old, new):
    assert summaries.split_docstring(DOCSTRING.replace(old, new)) is None


def test_a_package_that_is_not_installed_is_named(tmp_path):
    for main, *options in (
        (summaries.main,),
        (translations.main, "--target", "de"),
    ):
        result = run(main, tmp_path / "output", "--package", "no_such_one", *options)
        assert result.exit_code == 2
        assert "'no_such_one'" in result.output
        assert not (tmp_path / "output").exists()


def catalogue(messages, order="<", charset="utf-8"):
    """A .mo file, as `msgfmt` writes it from messages and translations."""
    messages = {"": f"Content-Type: text/plain; charset={charset}\n", **messages}
    count = len(messages)
    header = struct.pack(f"{order}7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    tables, texts = b"", b""
    for text in (*messages, *messages.values()):
        encoded = text.encode(charset)
        start = len(header) + 16 * count + len(texts)
        tables += struct.pack(f"{order}2I", len(encoded), start)
        texts += encoded + b"\0"
    return header + tables + texts


MESSAGES = {
    "Open file": "Datei öffnen",
    "open file!": "Datei öffnen!",
    "month name\x04May": "Mai",
    "%d new file\0%d new files": "%d neue Datei\0%d neue Dateien",
    "Hello\n   %(name)s ": "Hallo\n%(name)s",
    # not translations, or not of words
    "Server": "Server",
    "Untranslated": "",
    "%(count)s / %(total)s": "%(count)s von %(total)s",
    "%d file of {user}": "%d Datei",
    "<b>Bold</b> <i>text</i>": "<b>Fetter</b> <i>Text</i>",
    "_Quit": "_Beenden",
    "https://here": "https://hier",
    "word " * 41: "Wort " * 41,
}
PAIRS = {
    "Open file": "Datei öffnen",
    "open file!": "Datei öffnen!",
    "May": "Mai",
    "%d new file": "%d neue Datei",
    "%d new files": "%d neue Dateien",
    "Hello %(name)s": "Hallo %(name)s",
}


def write_catalogue(folder, content, language="de"):
    """Write a catalogue where gettext looks for it."""
    path = folder / "locale" / language / "LC_MESSAGES" / "django.mo"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("order", "charset"), [("<", "utf-8"), (">", "utf-8"), ("<", "iso-8859-1")]
)
def test_messages_become_pairs_and_others_are_left_out(tmp_path, order, charset):
    write_catalogue(tmp_path, catalogue(MESSAGES, order, charset))
    pairs = translations.build_pairs([str(tmp_path)], "de")
    assert {pair["source"]: pair["target"] for pair in pairs} == PAIRS
    for pair in pairs:
        assert (pair["source_language"], pair["target_language"]) == ("en", "de")


def test_one_of_several_translations_is_kept_the_most_frequent(tmp_path):
    for index, translation in enumerate(("Öffnen", "Offen", "Offen")):
        write_catalogue(tmp_path / str(index), catalogue({"Open": translation}))
    (pair,) = translations.build_pairs([str(tmp_path)], "de")
    assert pair["target"] == "Offen"


def test_translations_in_a_package_and_in_a_wheel_are_written(tmp_path, monkeypatch):
    package = tmp_path / "translated_package"
    many = {f"File number {n}{end}": f"Datei {n}" for n in range(150) for end in ".!"}
    path = write_catalogue(package, catalogue(many))
    wheel = tmp_path / "other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other/locale/de/LC_MESSAGES/a.mo", catalogue(MESSAGES))
        archive.writestr("other/locale/fr/LC_MESSAGES/a.mo", path.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    packages = ["--package", package.name, "--package", wheel]
    output = tmp_path / "output"
    result = run(translations.main, output, *packages, "--target", "de")
    assert result.exit_code == 0, result.output
    splits = read_splits(output)
    assert sum(map(len, splits.values())) == len(PAIRS) + len(many)
    assert min(map(len, splits.values())) > 10
    assert is_disjoint(splits, lambda pair: translations.normalize(pair["source"]))


def test_the_languages_that_a_package_has_are_named(tmp_path):
    for language in ("fr", "pt_BR"):
        write_catalogue(tmp_path, catalogue({"Yes": "Oui"}), language)
    result = run(
        translations.main, tmp_path / "new", "--package", tmp_path, "--target", "de"
    )
    assert result.exit_code == 2
    assert "fr, pt_BR" in result.output


@pytest.mark.skipif(not importlib.util.find_spec("django"), reason="needs Django")
def test_django_gives_hundreds_of_german_pairs():
    pairs = translations.build_pairs(["django"], "de")
    german = {pair["source"]: pair["target"] for pair in pairs}
    assert len(german) > 500
    assert german["December"] == "Dezember"


def test_models_of_the_zoo_are_runs_and_rows_of_one_table(tmp_path):
    row = {"title": "a text", "parameters": 818816, "minutes": 4.25, "loss": 1.5}
    row |= {"bits_per_byte": 1.25, "memory": 10**9, "speed": 300.0, "score": ""}
    for name, recipe in zoo.ZOO.items():
        runs.RunConfig(**recipe.train)
        if recipe.finetune:
            runs.FinetuneConfig(**recipe.finetune)
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "row.json", row | {"sample": f"of {name}"})
    table = zoo.write_table(tmp_path)
    assert table == (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| code | a text | 0.8M | 4.2 | 1.500 | 1.250 |  | 300 | 1.0 GB |" in table
    assert "of translator" in table
