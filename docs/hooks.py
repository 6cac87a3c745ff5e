"""What `mkdocs build` does beside: pages from elsewhere, links that leave `docs/`.

README.md is the site's start and benchmarks/RESULTS.md its figures, as they are.
"""

import posixpath
import re
import tomllib
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# page: the file that it is made of
PAGES = {"index.md": "README.md", "results.md": "benchmarks/RESULTS.md"}
# code, or [text](path#anchor), but no address and no anchor of the same page
LINK = re.compile(
    r"```.*?```|`[^`\n]*`|\[([^\[\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)", re.DOTALL
)


def on_files(files, config):
    """Add the pages that stand elsewhere."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links find their pages, and what isn't in the site in the repository."""
    uri = page.file.src_uri
    folder = posixpath.dirname(PAGES.get(uri, f"docs/{uri}"))
    moved = {source: page for page, source in PAGES.items()}
    repository = read_repository()

    def point(match):
        text, path, anchor = match[1], match[2], match[3] or ""
        if path is None:
            return match[0]
        target = posixpath.normpath(posixpath.join(folder, path))
        if not (ROOT / target).exists():
            raise ValueError(f"{uri} links to {path}, which isn't there.")
        if target.startswith("docs/") or target in moved:
            target = moved.get(target, target.removeprefix("docs/"))
            path = posixpath.relpath(target, posixpath.dirname(uri) or ".")
            return f"[{text}]({path}{anchor})"
        if repository:
            return f"[{text}]({repository}/blob/main/{target}{anchor})"
        return text  # the address isn't known yet

    return LINK.sub(point, markdown)


def read_repository():
    """The repository's address, which pyproject.toml states once, or `None`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    address = project["urls"]["Repository"]
    return None if "OWNER" in address else address
