"""Work divided among ranks, whole and as even as it comes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

Rows = Sequence[Sequence[int]]
"""The samples that each rank has or is to have."""


def split_evenly(units: Sequence[Sequence[int]], parts: int) -> list[list[int]]:
    """The rows of whole ``units`` in ``parts`` runs, as even as they come; some are empty where there are fewer units."""
    bounds = [len(units) * i // parts for i in range(parts + 1)]
    return [[row for unit in units[start:end] for row in unit] for start, end in pairwise(bounds)]


def assign_rounds(units: Sequence[Sequence[int]], size: int, count: int) -> Iterator[Rows]:
    """Rounds of the rows that each of ``count`` ranks is to have, whole ``units`` and as even as they come.

    A rank has at most ``size`` units a round, but for a round to be; in the last some may have none.
    """
    rounds = math.ceil(len(units) / (size * count))
    parts = rounds * count
    pieces = split_evenly(units, parts)
    pieces.sort(key=lambda piece: not piece)  # those without work last, together
    for start in range(0, parts, count):
        yield pieces[start : start + count]


def split_with_padding(rows: Sequence[int], count: int) -> Rows:
    """``rows`` in ``count`` runs of one length; the last row is repeated where they do not come out even."""
    length = math.ceil(len(rows) / count)
    return [[rows[min(rank * length + i, len(rows) - 1)] for i in range(length)] for rank in range(count)]


def deal(units: Sequence[Sequence[int]], count: int, before: int = 0) -> list[list[int]]:
    """Whole ``units`` to ``count`` ranks in turn, of which ``before`` have had theirs: over all calls as even as they come."""
    found: list[list[int]] = [[] for _ in range(count)]
    for place, unit in enumerate(units, before):
        found[place % count].extend(unit)
    return found
