"""Lines as wide as the terminal, or as 80 columns where there is none."""

from __future__ import annotations

import shutil
import textwrap

WIDEST = 120
"""Beyond which lines are hard to read."""


def terminal_width() -> int:
    """Columns."""
    return min(WIDEST, max(40, shutil.get_terminal_size((80, 24)).columns))


def cut(text: str, width: int) -> str:
    """``text`` in ``width`` columns, ended between words by … where it is longer."""
    return text if len(text) <= width else f"{text[: width - 1].rpartition(' ')[0].rstrip(' ,;:')} …"


def fill(text: str, width: int) -> list[str]:
    """``text`` in lines of ``width`` columns; words that are longer, such as paths, stay whole."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
