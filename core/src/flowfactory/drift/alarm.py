"""Alarms about the drift panel: a figure is far from where it began, while a training reward rose."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from flowfactory.reward_trends import is_rise, quarter

if TYPE_CHECKING:
    from flowfactory.types import Say  # which imports torch

TRAINING, HELD_OUT = "drift/", "drift/heldout/"
"""What the names of the panel's metrics begin with."""
WINDOW = 5
"""Iterations that a figure of training is averaged over, at first and now: each has other prompts."""
FAR = 3.0
"""Standard deviations of a mean's difference."""
LARGE = 1.25
"""Of the samples' own standard deviation at first, which a difference is to be: honest learning came to 0.8 of it."""
LEAST = 1e-3
"""A standard deviation of less is not believed: the samples were alike by chance, and nobody sees such a difference."""
FEWEST = 4
"""Held-out groups without which nothing is said: their spread is not known."""
TITLES = {
    "luma": "brightness",
    "saturation": "saturation",
    "edge_density": "edge density",
    "colour_entropy": "colour entropy",
    "jpeg_bytes": "JPEG bytes a pixel",
    "grid_energy": "energy at the decoder's grid",
    "diversity": "distance of pictures within a group",
    "frame_difference": "difference of neighbouring frames",
    "flicker": "flicker",
}


class Figure(NamedTuple):
    """A figure's mean over some samples of ``groups`` groups, and the samples' standard deviation."""

    mean: float
    std: float
    groups: float


class Alarm(NamedTuple):
    """The metric ``name`` went from ``before`` to ``after``, by ``z`` standard deviations, as ``reward`` rose by ``rise``."""

    name: str
    iteration: int
    before: float
    after: float
    z: float
    reward: str
    rise: tuple[float, float]

    def sentence(self) -> str:
        """What a reader is told of it."""
        held_out = self.name.startswith(HELD_OUT)
        figure = self.name.removeprefix(HELD_OUT if held_out else TRAINING)
        where = "held-out samples" if held_out else "training samples"
        return (
            f"drift: by iteration {self.iteration} the {TITLES.get(figure, figure)} of {where} went from {self.before:.3g} to "
            f"{self.after:.3g}, {abs(self.z):.1f} standard deviations, while {self.reward} rose from {self.rise[0]:.4g} to "
            f"{self.rise[1]:.4g} in training: look at the pictures, and whether the reward is fooled"
        )


def z_score(first: Figure, now: Figure) -> float:
    """How many standard deviations ``now`` is from ``first``: those of the difference of two means over independent groups."""
    variance = first.std**2 / first.groups + now.std**2 / now.groups
    return (now.mean - first.mean) / max(LEAST, math.sqrt(variance))


def is_far(first: Figure, now: Figure) -> bool:
    """Whether ``now`` is so far from ``first`` that chance does not explain it, and a person would see it."""
    return abs(z_score(first, now)) > FAR and abs(now.mean - first.mean) > LARGE * first.std


def pooled(figures: Sequence[Figure]) -> Figure:
    """``figures`` as one, of all their samples together: their spread is that within each and that of their means."""
    mean = sum(figure.mean for figure in figures) / len(figures)
    variance = sum(figure.std**2 + (figure.mean - mean) ** 2 for figure in figures) / len(figures)
    return Figure(mean, math.sqrt(variance), figures[0].groups)


@dataclass
class Course:
    """A figure as it was in the first iterations, or the first evaluation, and as it is in the last ones."""

    window: int
    count: int = 0
    first: list[Figure] = field(default_factory=list)
    start: Figure | None = None
    last: deque[Figure] = field(default_factory=deque)

    def add(self, figure: Figure) -> None:
        """Take in the next."""
        self.count += 1
        if len(self.first) < self.window:
            self.first.append(figure)
            self.start = pooled(self.first)
        self.last.append(figure)
        if len(self.last) > self.window:
            self.last.popleft()

    def ends(self) -> tuple[Figure, Figure] | None:
        """At first, and now; None before there is more than the first."""
        return (self.start, pooled(self.last)) if self.start and self.count > self.window else None


class Rise:
    """How a training reward's mean went; sums of all so far, so that each iteration costs the same."""

    def __init__(self) -> None:
        self._sums, self._squares = [0.0], [0.0]
        self._first = 0.0

    def add(self, mean: float) -> None:
        """Take in the next."""
        if len(self._sums) == 1:
            self._first = mean
        value = mean - self._first  # squares of what is far from 0 would lose digits
        self._sums.append(self._sums[-1] + value)
        self._squares.append(self._squares[-1] + value**2)

    def ends(self) -> tuple[float, float] | None:
        """The means of the first and the last quarter, where it rose as :func:`is_rise` says; else None."""
        if (length := len(self._sums) - 1) < 2:
            return None
        count = quarter(length)
        first, last = self._moments(0, count), self._moments(length - count, length)
        return (first[0] + self._first, last[0] + self._first) if is_rise(first, last, count) else None

    def _moments(self, start: int, end: int) -> tuple[float, float]:
        """The mean and the variance from ``start`` to ``end``."""
        count = end - start
        mean = (self._sums[end] - self._sums[start]) / count
        return mean, max(0.0, (self._squares[end] - self._squares[start]) / count - mean**2)


class DriftWatch:
    """Follows the drift panel of a run, whose ``records`` so far are those before; each figure is warned of once."""

    def __init__(self, records: Sequence[Mapping[str, Any]] = (), say: Say = lambda _: None) -> None:
        self._say: Say = lambda _: None
        self._courses: dict[str, Course] = {}
        self._rewards: dict[str, Rise] = {}
        self._trained: set[str] = set()
        self._velocity: float | None = None
        self.alarms: dict[str, Alarm] = {}
        for record in records:
            self.add(record)
        self._say = say

    def add(self, record: Mapping[str, Any]) -> dict[str, float]:
        """What is to be added to the next ``record``; warns of figures that are far from where they began for the first time.

        ``drift/z``, the largest of their distances in standard deviations, and ``drift/alarm``, how many are far while a
        training reward rose; ``velocity_norm``, ``velocity_rms/fixed`` by what it was in the first iteration.
        """
        for label, mean in _rewards(record):
            self._rewards.setdefault(label, Rise()).add(mean)
            if f"advantage/{label}/share" in record:  # what is only watched is no reason to suspect
                self._trained.add(label)
        for name, figure in _figures(record):
            self._courses.setdefault(name, Course(1 if name.startswith(HELD_OUT) else WINDOW)).add(figure)
        found = self._velocity_norm(record)
        known = {name: ends for name, course in self._courses.items() if (ends := course.ends())}
        if not known:
            return found
        far = [name for name, ends in known.items() if is_far(*ends)]
        rising = self._rising() if far else None
        if rising:
            for name in far:
                if name not in self.alarms:
                    self.alarms[name] = _alarm(name, record["iteration"], known[name], rising)
                    self._say(f"warning: {self.alarms[name].sentence()}")
        z = max(abs(z_score(*ends)) for ends in known.values())
        return found | {"drift/z": z, "drift/alarm": float(len(far) if rising else 0)}

    def _rising(self) -> tuple[str, tuple[float, float]] | None:
        """The first reward that rose, and from where to where."""
        for label, rise in self._rewards.items():
            if label in self._trained and (ends := rise.ends()):
                return label, ends
        return None

    def _velocity_norm(self, record: Mapping[str, Any]) -> dict[str, float]:
        size = record.get("velocity_rms/fixed")
        self._velocity = size if self._velocity is None else self._velocity
        if size is None or not self._velocity or "velocity_norm" in record:  # as an algorithm with a reference tells it
            return {}
        return {"velocity_norm": size / self._velocity}


def drift_alarms(records: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """The alarms of a run, of whose metrics ``records`` are the lines, in the order in which they were raised."""
    return list(DriftWatch(records).alarms.values())


def _alarm(name: str, iteration: int, ends: tuple[Figure, Figure], rising: tuple[str, tuple[float, float]]) -> Alarm:
    return Alarm(name, iteration, ends[0].mean, ends[1].mean, z_score(*ends), *rising)


def _figures(record: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """The panel's figures in ``record``, under the names of their metrics."""
    for key, std in record.items():
        if not key.startswith(TRAINING) or not key.endswith("/std") or (name := key.removesuffix("/std")) not in record:
            continue
        held_out = name.startswith(HELD_OUT)
        groups = record.get((HELD_OUT if held_out else TRAINING) + "groups", 0)
        if groups >= (FEWEST if held_out else 1):
            yield name, Figure(record[name], std, groups)


def _rewards(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The label and the mean of each reward in ``record``."""
    for key, mean in record.items():
        if key.startswith("reward/") and key.endswith("/mean") and key.count("/") == 2:
            yield key[len("reward/") : -len("/mean")], mean
