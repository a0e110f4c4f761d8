"""The best of the evaluations in a run's metrics, and the score that decides it. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowfactory.checkpoint_names import list_checkpoints
from flowfactory.errors import UserError
from flowfactory.runs.score_format import format_score


class Evaluated(NamedTuple):
    """A score and after which iteration."""

    iteration: int
    score: float

    def __str__(self) -> str:
        when = f"after iteration {self.iteration}" if self.iteration else "before training"
        return f"{format_score(self.score)} {when}"


def evaluated(records: Iterable[Mapping[str, Any]], name: str) -> list[Evaluated]:
    """Every evaluation in which the score ``name`` is a number."""
    return [Evaluated(record["iteration"], record[name]) for record in records if math.isfinite(record.get(name, math.nan))]


def find_best(scores: Sequence[Evaluated], among: Collection[int] | None = None) -> Evaluated | None:
    """The first of those with the highest score, of the iterations ``among`` where they are given; None: there is none."""
    there = [each for each in scores if among is None or each.iteration in among]
    return max(there, key=lambda each: each.score, default=None)


def best_sentence(checkpoints: Path, written: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str | None:
    """Which of ``checkpoints`` is kept as the best, of a run whose config is ``written`` as YAML has it; None where none is."""
    name = written_score(written)
    try:
        saved = {int(path.name): path for path in list_checkpoints(checkpoints)}
    except UserError:
        return None
    best = find_best(evaluated(records, name), saved) if name else None
    if best is None:
        return None
    return f"The best checkpoint by {name} is checkpoints/{saved[best.iteration].name}: {best}."


def written_score(written: Mapping[str, Any]) -> str | None:
    """:func:`best_score` of a config whose components need not be on this machine."""
    match written:
        case {"output": {"keep_best": str(name)}}:
            return name
        case {"training": {"early_stop": {"on": str(name), "keep": "best"}}}:
            return name
        case {"output": {"keep_best": True}, "training": {"early_stop": {"on": str(name)}}}:
            return name
        case {"output": {"keep_best": True}, "evaluation": {"rewards": dict(rewards)}} if rewards:
            return f"eval/{next(iter(rewards))}/mean"
        case {"output": {"keep_best": True}, "rewards": dict(rewards)} if rewards:
            return f"eval/{next(iter(rewards))}/mean"
        case _:
            return None
