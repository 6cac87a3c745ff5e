import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
find_faults = runpy.run_path(str(ROOT / ".github" / "check_release.py"))["find_faults"]


def test_the_wheel_has_the_files_of_both_packages_and_no_others():
    builder = WheelBuilder(str(ROOT))
    included = {file.distribution_path for file in builder.recurse_included_files()}
    assert included == {
        path.relative_to(ROOT).as_posix()
        for package in ("keras_gpt", "keras_gpt_cli")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_workflows_test_each_python_that_the_package_names():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    name = "Programming Language :: Python :: "
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == [
        line.removeprefix(name) for line in PROJECT["classifiers"] if name in line
    ]


@pytest.fixture
def checkout(tmp_path):
    """A folder that may be released."""
    for path, text in {
        "pyproject.toml": '[project.urls]\nRepository = "https://example.org/us/gpt"\n',
        "keras_gpt/__init__.py": '__version__ = "1.2.0"\n',
        "CITATION.cff": "version: 1.2.0\n",
        "CHANGELOG.md": "## [Unreleased]\n\n## [1.2.0] - 2026-12-01\n",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)

    def git(*arguments):
        author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True)

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "Begin")
    return tmp_path


def test_a_release_is_refused_for_each_thing_that_is_missing(checkout):
    assert find_faults(checkout, "v1.2.0") == []
    (checkout / "pyproject.toml").write_text(
        '[project.urls]\nRepository = "https://example.org/OWNER/gpt"\n'
    )
    (checkout / "keras_gpt/__init__.py").write_text('__version__ = "1.3.0"\n')
    address, cited, changes, tag, tree = find_faults(checkout, "v1.2.0")
    assert "OWNER" in address
    assert "CITATION.cff" in cited
    assert "CHANGELOG.md" in changes
    assert "v1.3.0 is wanted" in tag
    assert "pyproject.toml" in tree
