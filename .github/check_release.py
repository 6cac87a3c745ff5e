"""Refuse a release that isn't ready: the address, the changelog, the tree.

    python .github/check_release.py [v1.2.3]

With a tag, as when it is published, the tag must be that of the version.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def find_faults(root: Path = ROOT, tag: str | None = None) -> list[str]:
    """What keeps a checkout from being released, a line for each."""
    faults = []
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    address = project.get("urls", {}).get("Repository", "")
    if not address.startswith("https://") or "OWNER" in address:
        faults.append(
            f"[project.urls] of pyproject.toml has no address. Received: {address!r}. "
            "Write the repository's, then `make notebooks`."
        )
    source = (root / "keras_gpt" / "__init__.py").read_text("utf-8")
    version = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)[1]
    cited = re.search(
        r"^version: (.+)$", (root / "CITATION.cff").read_text("utf-8"), re.MULTILINE
    )[1]
    if cited != version:
        faults.append(f"CITATION.cff cites {cited}, the version is {version}.")
    changes = (root / "CHANGELOG.md").read_text("utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-", changes, re.M):
        faults.append(f"CHANGELOG.md has no line `## [{version}] - YYYY-MM-DD`.")
    if tag is not None and tag != f"v{version}":
        faults.append(f"The tag is {tag}, the version {version}: v{version} is wanted.")
    changed = subprocess.run(
        ["git", "status", "--porcelain"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    if changed:
        faults.append(f"Not all is committed: {' '.join(changed.split())}")
    return faults


if __name__ == "__main__":
    found = find_faults(tag=sys.argv[1] if len(sys.argv) > 1 else None)
    print("\n".join(found) or "Ready to be released.")
    sys.exit(1 if found else 0)
