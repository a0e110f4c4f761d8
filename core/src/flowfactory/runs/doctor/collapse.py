"""A reward that fell within few iterations, and groups that lost their spread: what stretches of a whole run would blur."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, takewhile
from statistics import fmean
from typing import NamedTuple

from flowfactory.runs.doctor import names
from flowfactory.runs.doctor.table import RECENT, Move, Points, Stretch, Table, mean, noise_without_jumps

BEFORE, AFTER = RECENT, 5
"""Iterations: at most those before a fall, and at least those since."""
SHARE = 0.5
"""Of the samples' spread before, which a fall is at least."""
NEAR, AT_ONCE = 3, 0.75
"""Iterations to either side of it, between which at least so much of it lies: a steady decline is none."""
ERRORS, OWN_ERRORS = 6.0, 3.0
"""A fall is at least so many standard errors by what neighbours differ by, and by what the samples of those iterations do."""
NO_SPREAD = 0.5
"""Share of the groups that have none."""
SPREAD_ERRORS = 3.0
RISE = 0.25
"""Of the samples' spread at first, by which a reward is higher."""


def sudden_fall(table: Table, label: str) -> Move | None:
    """The largest fall of a reward from one iteration to the next, after which it has not come back.

    The few iterations around it tell little of the noise, so it has to be beyond two: what neighbours differ by, of which the
    largest differences are left aside, and what a mean of so many groups may be off by if each group scored as one.
    """
    points = table.column(f"reward/{label}/mean")
    spreads = table.column(f"reward/{label}/std")
    if len(points) <= AFTER or len(spreads) != len(points):
        return None
    noise, groups = noise_without_jumps(points), max(1, table.count("sampling.groups", 1))
    found = [move for move in _falls(points, spreads, noise, groups) if move]
    return min(found, key=lambda move: move.difference, default=None)


def _falls(points: Points, spreads: Points, noise: float, groups: int) -> Iterator[Move | None]:
    """What there is at each place; None: it is no fall."""
    sums = [0.0, *accumulate(value for _, value in points)]
    squares = [0.0, *accumulate(value**2 for _, value in spreads)]
    for at in range(1, len(points) - AFTER + 1):
        start, end = max(0, at - BEFORE), len(points)
        before, after = at - start, end - at
        variance, later = (squares[at] - squares[start]) / before, max(0.0, (squares[end] - squares[at]) / after)
        error = noise * math.sqrt(1 / before + 1 / after)
        own = math.sqrt((variance / before + later / after) / groups)
        fall = (sums[at] - sums[start]) / before - (sums[end] - sums[at]) / after
        near = mean(points[max(0, at - NEAR) : at]) - mean(points[at : at + NEAR])
        least = max(SHARE * math.sqrt(variance), ERRORS * error, OWN_ERRORS * own)
        if fall <= 0 or fall < least or near < AT_ONCE * fall:
            yield None
        else:
            first = Stretch(points[start][0], points[at - 1][0], (sums[at] - sums[start]) / before)
            yield Move(first, Stretch(points[at][0], points[-1][0], (sums[end] - sums[at]) / after), max(error, own))


class LostSpread(NamedTuple):
    """Most groups had a spread up to ``iteration``, all but the share ``before``; now the share ``after`` has none."""

    iteration: int
    before: float
    after: float


def lost_spread(table: Table, label: str) -> LostSpread | None:
    """How groups lost the spread that they had at first; None where they have one, or had none."""
    name = table.first_known([*names.FLAT_GROUPS, f"reward/{label}/flat"])
    recent = table.recent(name) if name else ()
    if name is None or len(recent) < RECENT or (after := mean(recent)) < NO_SPREAD:
        return None
    first = [*takewhile(lambda point: point[1] < NO_SPREAD, table.column(name))]
    if not first:
        return None
    error = math.sqrt(after * max(0.0, 1 - after) / (len(first) * max(1, table.count("sampling.groups", 1))))
    before = mean(first)
    return LostSpread(first[-1][0], before, after) if after - before > SPREAD_ERRORS * error else None


def has_risen_since(table: Table, label: str, iteration: int) -> bool:
    """Whether a reward is higher now than up to ``iteration``, by a part of what samples differed by then."""
    points, recent = table.column(f"reward/{label}/mean"), table.recent(f"reward/{label}/mean")
    spreads = [value for number, value in table.column(f"reward/{label}/std") if number <= iteration]
    first = [value for number, value in points if number <= iteration]
    if not first or not recent:
        return False
    return mean(recent) - fmean(first) > RISE * (fmean(spreads) if spreads else 0.0)
