"""Line charts as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Points = list[tuple[float, float]]
MOST_POINTS = 1000
"""Of a line: a chart is as many pixels wide."""


def scale_to_unit(points: Points) -> Points:
    """``points`` from 0 at their lowest to 1 at their highest."""
    finite = [y for _, y in points if _is_drawn(y)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return [(x, (y - low) / ((high - low) or 1)) for x, y in points]


def _is_drawn(value: float) -> bool:
    return abs(value) < 1e300  # the range of larger ones may be no number


def thin(points: Points) -> Points:
    """``points``, or of more than MOST_POINTS the lowest and the highest of each stretch, which is what is seen of them."""
    if len(points) <= MOST_POINTS:
        return points
    length = -(-2 * len(points) // MOST_POINTS)
    kept: Points = []
    for start in range(0, len(points), length):
        stretch = range(start, min(start + length, len(points)))
        ends = {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
        kept += [points[i] for i in sorted(ends)]
    return kept


class Style(NamedTuple):
    """How a line of a chart is drawn."""

    colour: str
    dashed: bool = False


COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")


def chart(*lines: Points, styles: Sequence[Style] = (), width: int = 440, height: int = 180) -> str:
    """``lines`` in one SVG, with their common range on the axes; empty where there is nothing finite to draw."""
    finite = [[(x, y) for x, y in points if _is_drawn(y)] for points in lines]
    xs, ys = [x for points in finite for x, _ in points], [y for points in finite for _, y in points]
    if not xs:
        return ""
    (first, last), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))
    left, top, right, bottom = 64, 10, width - 8, height - 22

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (right - left) * (x - first) / ((last - first) or 1)
        return across, bottom - (bottom - top) * (y - low) / ((high - low) or 1)

    drawn = ""
    for points, style in zip(finite, styles or [Style(COLOURS[0])] * len(finite), strict=True):
        places = [place(x, y) for x, y in thin(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dashes = " stroke-dasharray='7 4'" if style.dashed else ""
        drawn += f"<polyline points='{path}' fill='none' stroke='{style.colour}' stroke-width='1.8'{dashes}/>"
        if len(places) < 25:
            drawn += "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2.5' fill='{style.colour}'/>" for x, y in places)
    axes = f"<path d='M{left} {top}V{bottom}H{right}' fill='none' stroke='#8888'/>"
    labels = "".join(
        f"<text x='{x}' y='{y}' text-anchor='{anchor}' font-size='11' fill='currentColor'>{value:.4g}</text>"
        for x, y, anchor, value in (
            (left - 6, top + 6, "end", high),
            (left - 6, bottom, "end", low),
            (left, height - 6, "start", first),
            (right, height - 6, "end", last),
        )
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' font-family='sans-serif'>"
        f"{axes}{drawn}{labels}</svg>"
    )
