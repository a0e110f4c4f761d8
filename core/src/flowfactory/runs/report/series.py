"""Series of figures over the iterations: read from the records in one pass, smoothed, and thinned to what is seen of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

MOST_SERIES = 2000
"""Names that are looked at: a run has a hundred or two."""
MOST_POINTS = 400
"""Of a line: a chart is about as many pixels wide."""
MOST_ROWS = 40
"""Of the table behind a chart."""
SMOOTHED_FROM = 20
"""Points of a line beside which its running mean is drawn."""


class Point(NamedTuple):
    """A value after ``iteration``, and half the length of its bar, or half the width of its band."""

    iteration: int
    value: float
    spread: float | None = None


Points = Sequence[Point]


def read_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Every metric by name, in the order in which they first appear, its points in the order of their iterations."""
    columns: dict[str, list[Point]] = {}
    for record in records:
        iteration = record["iteration"]
        for name, value in record.items():
            column = columns.get(name)
            if column is None:
                if len(columns) >= MOST_SERIES or name == "iteration":
                    continue
                column = columns[name] = []
            column.append(Point(iteration, value))
    for column in columns.values():
        column.sort(key=itemgetter(0))  # as they are, unless somebody has edited them
    return columns


def with_spread(points: Points, spreads: Points) -> list[Point]:
    """``points``, each with the spread of the same iteration, none where there is none."""
    known = {point.iteration: point.value for point in spreads if point.value >= 0}
    return [Point(point.iteration, point.value, known.get(point.iteration)) for point in points]


def without_spread(points: Points) -> Points:
    """``points``, none with a spread."""
    if all(point.spread is None for point in points):
        return points
    return [Point(point.iteration, point.value) for point in points]


def thin(points: Points) -> Points:
    """``points``, or of more than MOST_POINTS the lowest and the highest of each stretch, which is what is seen of them."""
    if len(points) <= MOST_POINTS:
        return points
    length = -(-2 * len(points) // MOST_POINTS)
    values = [point.value for point in points]
    kept: list[Point] = []
    for start in range(0, len(points), length):
        stretch = values[start : start + length]
        ends = {stretch.index(min(stretch)), stretch.index(max(stretch))}
        kept += [points[start + place] for place in sorted(ends)]
    return kept


def window(points: Points) -> int:
    """How many points the running mean of ``points`` is taken over: about a tenth, an odd number of at least 3."""
    return max(3, len(points) // 10 | 1)


def smooth(points: Points) -> list[Point]:
    """The running mean of ``points`` over :func:`window` of them, fewer at the ends, at no more than MOST_POINTS of them.

    Each keeps its spread, averaged too, where all have one.
    """
    half, last = window(points) // 2, len(points) - 1
    step = max(1, -(-len(points) // MOST_POINTS))
    places = [*range(0, last, step), last] if points else []
    values = _means([point.value for point in points], half, places)
    whole = all(point.spread is not None for point in points)
    spreads = _means([point.spread or 0.0 for point in points], half, places) if whole else [None] * len(places)
    return [Point(points[i].iteration, value, spread) for i, value, spread in zip(places, values, spreads, strict=True)]


def _means(values: Sequence[float], half: int, places: Sequence[int]) -> list[float]:
    """The mean of each of ``values`` at ``places`` with ``half`` on either side, of fewer near the ends, as many on both."""
    base = values[0] if values else 0.0  # sums of what is far from 0 would lose digits
    sums = list(accumulate((value - base for value in values), initial=0.0))
    found = []
    for place in places:
        reach = min(half, place, len(values) - 1 - place)
        first, after = place - reach, place + reach + 1
        found.append(base + (sums[after] - sums[first]) / (after - first))
    return found
