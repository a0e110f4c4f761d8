"""Which rank writes what: every row of every tensor once, and each rank about as many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flowfactory.runs.checkpoints.shards import Rows


class Held(NamedTuple):
    """Rows of a tensor that a rank holds, from the ``first`` on."""

    name: str
    first: int
    bytes: int


@dataclass(frozen=True)
class WritePlan:
    """Who writes what: it depends on names, sizes and shards alone, and so is the same for one checkpoint after the other."""

    held: list[Held]
    """What this rank has, of which it writes the tensors ``mine``."""
    mine: set[str]
    bytes: int
    """Of all tensors."""


def held(parts: Sequence[Rows]) -> list[Held]:
    """What there is to write of a rank's ``parts``; a shard may have no row of a tensor that has some."""
    return [
        Held(part.name, part.first, part.tensor.nbytes)
        for part in parts
        if not part.whole or not part.tensor.dim() or len(part.tensor)
    ]


def choose_writers(by_rank: Sequence[Sequence[Held]]) -> list[set[str]]:
    """The names of the tensors whose rows each rank writes; all ranks come to the same, by what each of them holds.

    What several ranks hold is written by the one of them that has the fewest bytes to write until then.
    """
    holders: dict[Held, list[int]] = {}
    for rank, parts in enumerate(by_rank):
        for part in parts:
            holders.setdefault(part, []).append(rank)
    load = [0] * len(by_rank)
    chosen: list[set[str]] = [set() for _ in by_rank]
    for part, ranks in holders.items():
        writer = min(ranks, key=load.__getitem__)
        load[writer] += part.bytes
        chosen[writer].add(part.name)
    return chosen


def count_bytes(by_rank: Sequence[Sequence[Held]]) -> int:
    """Of all tensors, each counted once."""
    return sum(part.bytes for part in {part for parts in by_rank for part in parts})
