"""Where the documentation is: pages that lie in the folder ``docs`` of the repository."""

from __future__ import annotations

DOCS = "docs"
"""The one place that says it."""


def page(name: str) -> str:
    """``docs/cli.md``, of the page's name."""
    return f"{DOCS}/{name}.md"
