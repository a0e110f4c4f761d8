"""Model cards, read as a hub and a stranger read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


def head(folder: Path) -> dict[str, Any]:
    """What the card in ``folder`` says to a hub."""
    found: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    return found


def config(folder: Path) -> dict[str, Any]:
    """The config in the card."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    found: dict[str, Any] = yaml.safe_load(block)
    return found


def run_code(folder: Path, monkeypatch: Any, base: Path | None = None, **given: Any) -> dict[str, Any]:
    """The names that the card's code leaves, run in ``folder`` with ``given`` names, where ``base`` is the folder it names."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    if base is not None:
        assert f'"{base.name}"' in block
        block = block.replace(f'"{base.name}"', f'"{base}"')
    monkeypatch.chdir(folder)
    exec(compile(block, "README.md", "exec"), given)
    return given
