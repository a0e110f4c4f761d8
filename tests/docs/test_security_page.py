"""The tests that docs/security.md names are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs/security.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| attack or fault")
]


@pytest.mark.parametrize("row", ROWS)
def test_each_row_names_a_test_that_there_is(row: str) -> None:
    """As `tests/…/test_file.py::test_name`, in its last column."""
    named = re.findall(r"`(tests/[\w/.-]+\.py)::(\w+)`", row.rstrip("| ").rpartition("|")[2])
    assert named
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
