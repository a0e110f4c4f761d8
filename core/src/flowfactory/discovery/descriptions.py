"""What a component is, in a line, from its source: nothing of it is imported for that."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from importlib.util import find_spec
from pathlib import Path

from flowfactory.discovery.catalogue import Component
from flowfactory.untrusted_files import Refused, read_bytes

LARGEST = 2**20
"""Bytes of a source that is looked at."""
EVIDENCE = {
    "tested": "it trains in the tests, on a tiny checkpoint of the same classes",
    "measured": "it was run as it stands, and what it reached is in a committed figure",
    "gated": "the tests hold it to what it reached",
}
"""How far an example was tried, from less to more."""


def describe(component: Component) -> str:
    """The first sentence of its docstring, or of the comment that an example begins with; "" where there is none."""
    try:
        if component.kind == "example":
            return _first_sentence(_comment(Path(component.spec)).partition("\n")[0])
        if not isinstance(component.spec, str):
            return _first_sentence(inspect.getdoc(component.spec) or "")
        module, _, name = component.spec.partition(":")
        source = _find_source(module)
        return _first_sentence(_docstring(source, name)) if source else ""
    except (OSError, Refused, ImportError, SyntaxError, ValueError, TypeError):  # what is wrong is told where it is used
        return ""


def evidence(component: Component) -> str:
    """What an example says of how far it was tried, in the comment that it begins with: one of EVIDENCE, or "" for none."""
    if component.kind != "example":
        return ""
    try:
        comment = _comment(Path(component.spec))
    except (OSError, Refused):
        return ""
    found = re.search(r"^Evidence: (\w+)", comment, re.MULTILINE)
    return found[1] if found and found[1] in EVIDENCE else ""


def _comment(path: Path) -> str:
    """The lines of comment that a file begins with."""
    lines = read_bytes(path, LARGEST).decode(errors="replace").splitlines()
    return "\n".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))


def _find_source(module: str) -> Path | None:
    """The file of ``module``; packages that it is in are not imported, as the import system would."""
    top, *below = module.split(".")
    found = find_spec(top)
    if found is None or not found.origin:
        return None
    if not below:
        return Path(found.origin)
    within = [Path(folder, *below) for folder in found.submodule_search_locations or ()]
    sources = [source for path in within for source in (path.with_suffix(".py"), path / "__init__.py")]
    return next(filter(Path.is_file, sources), None)


def _docstring(source: Path, name: str) -> str:
    if source.suffix != ".py":
        return ""
    text = read_bytes(source, LARGEST).decode()
    begin = re.search(rf"^class {re.escape(name)}\b", text, re.MULTILINE)
    if begin is None:
        return ""
    rest = text[begin.start() :]
    end = re.search(r"\n(?=[^\s)])", rest)
    tree = ast.parse(rest[: end.start()] if end else rest)  # the class alone: to parse all of a module takes time
    return next((ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.ClassDef)), "")


def _first_sentence(text: str) -> str:
    """Of its first paragraph, as one line; of a sentence that is long, the part before a colon stays with what follows."""
    paragraph = " ".join(text.split("\n\n")[0].split()).replace("``", "")
    ended = re.match(r".*?[a-z0-9)\]]\.(?=\s+[A-Z]|$)", paragraph)
    return ended[0] if ended else paragraph
