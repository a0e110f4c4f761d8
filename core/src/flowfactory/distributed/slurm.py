"""Lists of nodes and tasks as SLURM writes them."""

from __future__ import annotations

import re
from itertools import product


def expand_hosts(text: str) -> list[str]:
    """The names in a node list as SLURM writes it: ``node[01-03,7],gpu5`` are node01, node02, node03, node7 and gpu5."""
    return [name for entry in re.findall(r"(?:\[[^\]]*\]|[^,\[])+", text) for name in _expand_entry(entry.strip())]


def _expand_entry(entry: str) -> list[str]:
    parts = re.split(r"\[([^\]]*)\]", entry)  # every other one is what stood in brackets
    choices = [_expand_numbers(part) if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _expand_numbers(text: str) -> list[str]:
    found = []
    for piece in text.split(","):
        first, _, last = piece.strip().partition("-")
        found += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return found


def expand_tasks_per_node(text: str) -> list[int]:
    """What SLURM writes as ``4(x2),3``: 4, 4 and 3."""
    found = []
    for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", text):
        found += [int(count)] * int(times or 1)
    return found
