"""A run's figures as rules see them: columns of its metrics, keys of its config, and how a column moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

from flowfactory.runs.doctor.names import ADVANTAGE, HELD_OUT, REWARD

Points = Sequence[tuple[int, float]]
RECENT = 10
"""Iterations that say how a run is now."""
LEAST = 16
"""Iterations without which nothing is said of how a figure moves."""
RISEN = 3.0
"""Standard errors by which a reward rose."""
FEWEST = 4
"""Iterations of each half that is compared with the other."""
JUMPS, MOST_JUMPS = 2, 16
"""Differences of neighbours that may be a change and no noise: so many, and in a long run one of so many."""
MOST = 20
"""Labels of each kind that are looked at."""
LARGEST = 1e100


class Table:
    """The ``records`` of metrics.jsonl in order, the ``config`` as YAML has it, and ``facts``, the content of run.json.

    All of it may be a stranger's: nothing is taken to be there, or of a type.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        config: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.records = records
        self.trained = [record for record in records if record["iteration"] > 0]
        self._config, self._facts = config or {}, facts or {}

    @cached_property
    def _columns(self) -> Mapping[str, Points]:
        """Every metric of training, in the order in which they first appear."""
        columns: dict[str, list[tuple[int, float]]] = {}
        for record in self.trained:
            iteration = record["iteration"]
            for name, value in record.items():
                columns.setdefault(name, []).append((iteration, value))
        return columns

    def column(self, name: str) -> Points:
        """(iteration, value) wherever an iteration of training has the metric."""
        return self._columns.get(name, ())

    def recent(self, name: str) -> Points:
        """Those of the last RECENT iterations."""
        return [(record["iteration"], record[name]) for record in self.trained[-RECENT:] if name in record]

    def first_known(self, names: Iterable[str]) -> str | None:
        """The first of ``names`` that the last iterations have."""
        return next((name for name in names if self.recent(name)), None)

    def labels(self) -> list[str]:
        """The rewards that are learned from, and that are to rise: a weight below 0 has what they count fall."""
        supplied = {*_labels(self._columns, ADVANTAGE, "share")}
        wanted = [label for label in _labels(self._columns, REWARD, "mean") if label in supplied or not supplied]
        return [label for label in wanted if self.weight(label) > 0][:MOST]

    def reward_names(self) -> list[str]:
        """The metrics of their means."""
        return [f"reward/{label}/mean" for label in self.labels()]

    def weight(self, label: str) -> float:
        """Of a training reward; 1 where the config does not say."""
        rewards = self.key("rewards")
        reward = rewards.get(label) if isinstance(rewards, Mapping) else None
        found = _number(reward.get("weight")) if isinstance(reward, Mapping) else None
        return 1.0 if found is None else found

    def held_out(self) -> list[str]:
        """The labels of the held-out rewards."""
        return [*_labels(dict.fromkeys(name for record in self.records for name in record), HELD_OUT, "mean")][:MOST]

    def rising(self) -> list[str]:
        """The rewards that are learned from and are higher in the last quarter than in the first, beyond their noise."""
        moves = {label: first_to_last(self.column(f"reward/{label}/mean")) for label in self.labels()}
        return [label for label, move in moves.items() if move and move.errors > RISEN]

    def key(self, path: str) -> Any:
        """The value of a key of the config, such as ``training.optimizer.lr``; None where it is not there."""
        return _lookup(self._config, path)

    def number(self, path: str) -> float | None:
        """The same where it is a number."""
        return _number(self.key(path))

    def fact(self, path: str) -> Any:
        """What run.json has there."""
        return _lookup(self._facts, path)

    def count(self, path: str, default: int) -> int:
        """A whole number of the config."""
        found = self.number(path)
        return int(found) if found is not None else default


def _lookup(mapping: Any, path: str) -> Any:
    for part in path.split("."):
        mapping = mapping.get(part) if isinstance(mapping, Mapping) else None
    return mapping


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and -LARGEST < value < LARGEST else None


def _labels(names: Iterable[str], kind: str, figure: str) -> Iterator[str]:
    """The middle of each of ``names`` that is ``<kind><label>/<figure>``."""
    for name in names:
        parts = name.split("/")
        if len(parts) == 3 and f"{parts[0]}/" == kind and parts[2] == figure:
            yield parts[1]


class Stretch(NamedTuple):
    """Iterations in a row, and the mean of a figure over them."""

    first: int
    last: int
    mean: float

    def __str__(self) -> str:
        where = f"iteration {self.first}" if self.first == self.last else f"iterations {self.first} to {self.last}"
        return f"{self.mean:.4g} ({where})"


class Move(NamedTuple):
    """From one stretch to another; ``error`` is the standard error of the difference of their means."""

    before: Stretch
    after: Stretch
    error: float

    @property
    def difference(self) -> float:
        """By how much it rose."""
        return self.after.mean - self.before.mean

    @property
    def errors(self) -> float:
        """The same in standard errors."""
        if self.difference == 0:
            return 0.0
        return self.difference / self.error if self.error else math.copysign(math.inf, self.difference)


def first_to_last(points: Points) -> Move | None:
    """From the first quarter to the last; None where there are too few."""
    if len(points) < LEAST:
        return None
    count = len(points) // 4
    return Move(_stretch(points[:count]), _stretch(points[-count:]), _error(points, count))


def best_to_last(points: Points) -> Move | None:
    """From the quarter, of those that begin half a quarter apart, with the highest mean to the last one."""
    if len(points) < LEAST:
        return None
    count = len(points) // 4
    stretches = [_stretch(points[start : start + count]) for start in range(0, len(points) - count + 1, max(1, count // 2))]
    return Move(max(stretches, key=lambda stretch: stretch.mean), _stretch(points[-count:]), _error(points, count))


def halves(points: Points) -> Move | None:
    """From the first half to the second; None where there are too few to tell their noise."""
    count = len(points) // 2
    if count < FEWEST:
        return None
    return Move(_stretch(points[:count]), _stretch(points[-count:]), _error(points, count))


def over_the_same(points: Points, move: Move) -> Move | None:
    """How a column went from the iterations of ``move.before`` to those of ``move.after``; None where it is in neither."""
    first, last = ([point for point in points if part.first <= point[0] <= part.last] for part in (move.before, move.after))
    if not first or not last or len(points) < 2:
        return None
    error = noise_without_jumps(points) * math.sqrt(1 / len(first) + 1 / len(last))
    return Move(_stretch(first), _stretch(last), error)


def mean(points: Points) -> float:
    """Of the values."""
    return fmean(value for _, value in points)


def noise_without_jumps(points: Points) -> float:
    """The standard deviation of a value, by what neighbours differ by; the JUMPS largest count as the next largest does."""
    squares = sorted((after - before) ** 2 for (_, before), (_, after) in pairwise(points))
    kept = squares[: -max(JUMPS, len(squares) // MOST_JUMPS)] or squares[:1]
    return math.sqrt(fmean([*kept, *[kept[-1]] * (len(squares) - len(kept))]) / 2) if squares else 0.0


def _stretch(points: Points) -> Stretch:
    return Stretch(points[0][0], points[-1][0], mean(points))


def _error(points: Points, count: int) -> float:
    """Of the difference of two means of ``count`` values, whose noise is what neighbours differ by: a slow change is none."""
    squares = [(after - before) ** 2 for (_, before), (_, after) in pairwise(points)]
    return math.sqrt(fmean(squares) / 2 * 2 / count)
