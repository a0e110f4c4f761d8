"""Plugins, examples in the pages and what they teach import from core what is public, and nothing else."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from tests.shared.public_doors import DOORS

ROOT = Path(__file__).parents[2]
SOURCES = ("plugins/*/src", "flowfactory-*/src", "docs/reference/examples", "core/src/flowfactory/templates/files")
PLUGINS = sorted(file for folder in SOURCES for file in ROOT.glob(f"{folder}/**/*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("plugins/*/README.md")])

PRIVATE = ["from flowfactory.rl.groups import center", "import flowfactory.training", "from flowfactory import nothing"]


def imported(code: str) -> Iterator[tuple[str, str]]:
    """(module, name) of every import from core; the name is empty where the module itself is imported."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flowfactory":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "flowfactory")


def private(code: str) -> list[str]:
    """The imports that go through no public door."""
    return [
        f"{module}.{name}".rstrip(".")
        for module, name in imported(code)
        if f"{module}.{name}" not in DOORS and (module not in DOORS or (name and name not in import_module(module).__all__))
    ]


def blocks(page: str) -> list[str]:
    """The Python in a page."""
    return [textwrap.dedent(found) for found in re.findall(r"^ *```python\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_plugin_imports_public_names_alone(file: Path) -> None:
    assert private(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_teaches_to_import_is_public(page: Path) -> None:
    assert [name for block in blocks(page.read_text(encoding="utf-8")) for name in private(block)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_dotted_name_in_a_page_stands_behind_a_public_door(page: Path) -> None:
    """``flowfactory.rl.mean_kl`` in running text; contributors' pages may name what is private."""
    if page.name == "CONTRIBUTING.md":
        return
    names = re.findall(r"`(flowfactory(?:\.[A-Za-z_]\w*)+)", page.read_text(encoding="utf-8"))
    for name in names:
        door, _, attribute = name.rpartition(".")
        assert name in DOORS or attribute in import_module(door).__all__, name


@pytest.mark.parametrize("door", DOORS)
def test_every_public_name_is_there_and_documented(door: str) -> None:
    module = import_module(door)
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("code", PRIVATE)
def test_a_private_import_is_found(code: str) -> None:
    assert private(code) != []
