"""The corpus that every CPython carries: its English documentation."""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

_SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "idle_test",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}


def embedded_corpus() -> Iterator[str]:
    """Yield the documentation of the running Python, a few MB of English.

    First the language reference's topics (`pydoc_data.topics`), then one document
    for each module of the standard library: its name, its docstring, and those of
    its classes and functions. The sources are parsed, never imported. Nothing is
    downloaded; the order is fixed; the text differs a little between versions of
    Python.

    Yields:
        Documents.

    Example:

    >>> next(embedded_corpus()).splitlines()[0]
    'The "assert" statement'
    """
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name].strip() + "\n"
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if not _SKIPPED_FOLDERS.isdisjoint(parts):
            continue
        name = ".".join(parts).removesuffix(".__init__")
        document = _module_document(name, path)
        if document:
            yield document


def embedded_sample(tokenizer, num_tokens: int) -> list[int]:
    """The first tokens of the embedded corpus, to compare losses on.

    Args:
        tokenizer: A tokenizer of `keras_gpt.tokenizers`. Characters that it doesn't
            know are left out.
        num_tokens: How many.

    Returns:
        Token ids.
    """
    ids = []
    for document in embedded_corpus():
        try:
            ids += tokenizer.encode(document)
        except ValueError:
            known = {c for c in set(document) if _is_known(tokenizer, c)}
            ids += tokenizer.encode("".join(c for c in document if c in known))
        if len(ids) >= num_tokens:
            break
    return ids[:num_tokens]


def _is_known(tokenizer, character):
    try:
        tokenizer.encode(character)
    except ValueError:
        return False
    return True


def _module_document(name: str, path: Path) -> str:
    """Join the docstrings of one module; "" if it has none or cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Old escapes in the library's strings.
            module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return ""
    sections = [ast.get_docstring(module) or "", *_member_sections(module, "")]
    sections = [section for section in sections if section]
    if not sections:
        return ""
    # Sources may hold escaped lone surrogates, which are no text.
    text = "\n\n".join([f"{name}\n{'=' * len(name)}", *sections]) + "\n"
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _member_sections(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    """Yield signature and docstring of the classes and functions, in source order."""
    for node in parent.body:
        if isinstance(node, ast.ClassDef):
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            heading = f"class {prefix}{node.name}({bases})"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            heading = f"{prefix}{node.name}({ast.unparse(node.args)})"
        else:
            continue
        docstring = ast.get_docstring(node)
        if docstring:
            indented = "\n".join(
                f"    {line}" if line else "" for line in docstring.splitlines()
            )
            yield f"{heading}\n{indented}"
        if isinstance(node, ast.ClassDef):
            yield from _member_sections(node, f"{prefix}{node.name}.")
