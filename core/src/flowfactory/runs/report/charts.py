"""Charts: SVG that scales without its letters, which are HTML around it, and a table behind each.

They are whole without a script: what is printed, or shown where scripts are not run, has all lines. ``report.js`` reads the
figures from the attributes ``data-x``, ``data-y`` and ``data-spread`` of each line, and adds hovering, zoom and the keyboard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

from flowfactory.runs.report.markup import Markup, element, scrolled
from flowfactory.runs.report.series import MOST_ROWS, SMOOTHED_FROM, Points, smooth, thin, window, without_spread
from flowfactory.runs.score_format import format_figure

SIDE = 1000
"""Of the square that lines are drawn in, which is stretched to the size of the chart."""
PAD = 12
"""Around it, so that a dot at an end is whole."""
STEPS = 4
"""Of the scale of values."""
CLOSE = 1e-9
"""Of a step, by which numbers differ that are the same but for rounding."""
COLOURS = 8
DOTS = 30
"""Points of a line up to which each is a dot, too."""


@dataclass(frozen=True)
class Line:
    """A line of a chart. ``bars``: a spread is a bar, else a band; ``faint``: another one of the same says more."""

    name: str
    points: Points
    colour: int = 0
    dashed: bool = False
    faint: bool = False
    bars: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines under a ``title``; ``metric`` is the name of the figure in metrics.jsonl, ``note`` what is to be known of it.

    ``named``: a line that is alone has its name, too.
    """

    title: str
    lines: Sequence[Line]
    metric: str = ""
    note: str = ""
    named: bool = False


class Axis(NamedTuple):
    """The iterations that all charts of a page go over."""

    first: int
    last: int


def smoothed(line: Line) -> list[Line]:
    """``line`` alone, or faintly with its running mean, which has the band, where it has enough points."""
    if len(line.points) < SMOOTHED_FROM:
        return [line]
    bare = replace(line, points=without_spread(line.points), faint=True)
    mean = replace(line, name=f"{line.name}, mean of {window(line.points)}", points=smooth(line.points))
    return [bare, mean]


def draw(chart: Chart, axis: Axis) -> Markup:
    """The chart as a figure; empty where there is nothing to draw."""
    lines = [line for line in chart.lines if line.points]
    if not lines:
        return Markup()
    shown = [replace(line, points=thin(line.points)) for line in lines]
    scale = round_scale(*_range(shown))
    low, high = scale[-1], scale[0]
    drawn = [_draw_line(line, axis, low, high) for line in shown]
    rules = (f"M{-PAD} {i * SIDE // STEPS}H{SIDE + PAD}" for i in range(STEPS + 1))
    grid = element("path", d="".join(rules), class_="grid")
    view = {"viewBox": f"{-PAD} {-PAD} {SIDE + 2 * PAD} {SIDE + 2 * PAD}", "preserveAspectRatio": "none"}
    picture = element("svg", grid, drawn, role="img", aria_label=_describe(chart, shown), **view)
    middle = (axis.first + axis.last) // 2
    sides = element("div", *(element("span", y) for y in format_scale(scale)), class_="y")
    below = element("div", *(element("span", str(x)) for x in (axis.first, middle, axis.last)), class_="x")
    ends: dict[str, str | float | bool | None] = {
        "data_first": axis.first,
        "data_last": axis.last,
        "data_low": f"{low:.9g}",
        "data_high": f"{high:.9g}",
    }
    frame = element("div", picture, element("div", class_="cursor", hidden=True), class_="frame", tabindex=0, role="group",
                    aria_label=f"{chart.title}: arrow keys read the values")  # fmt: skip
    tip = element("p", class_="tip", aria_live="polite")
    return element("figure", _caption(chart, lines), element("div", sides, frame, below, class_="plot"), tip,
                   _table(chart, lines), class_="chart", **ends)  # fmt: skip


def _range(lines: Sequence[Line]) -> tuple[float, float]:
    """The lowest and the highest value, the ends of bands and bars among them."""
    points = [point for line in lines for point in line.points]
    lows, highs = ([point.value + sign * (point.spread or 0.0) for point in points] for sign in (-1, 1))
    return min(lows), max(highs)


def round_scale(low: float, high: float) -> list[float]:
    """Five round numbers, equally far apart, from the highest to the lowest, between which ``low`` and ``high`` are."""
    if high == low:
        low, high = low - 0.05 * abs(low), high + 0.05 * abs(high) or 1.0
    wide = max(high - low, 1e-5 * max(abs(low), abs(high)), 1e-280)  # what a reader can tell apart
    exponent = math.floor(math.log10(wide / STEPS))
    for factor in (1, 2, 2.5, 5, 10, 20, 25, 50):
        step = factor * 10.0**exponent
        bottom = math.floor(low / step + CLOSE) * step
        if bottom + (STEPS + CLOSE) * step >= high:
            break
    return [bottom + i * step for i in range(STEPS, -1, -1)]


def format_scale(values: Sequence[float]) -> list[str]:
    """``values`` of :func:`round_scale` with as many digits as tell them apart."""
    largest, step = max(map(abs, values)), abs(values[0] - values[1])
    digits = 2 + math.floor(math.log10(largest)) - math.floor(math.log10(step)) if step and largest else 4
    return [f"{value if abs(value) > step / 2 else 0:.{min(12, max(2, digits))}g}" for value in values]


def _draw_line(line: Line, axis: Axis, low: float, high: float) -> Markup:
    across, up = SIDE / max(1, axis.last - axis.first), SIDE / (high - low)

    def x(iteration: int) -> str:
        return f"{(iteration - axis.first) * across:.1f}"

    def y(value: float) -> str:
        return f"{(high - value) * up:.1f}"

    parts, known = [], [point for point in line.points if point.spread is not None]
    if known and not line.bars:
        above = [f"{x(p.iteration)},{y(p.value + (p.spread or 0))}" for p in known]
        below = [f"{x(p.iteration)},{y(p.value - (p.spread or 0))}" for p in reversed(known)]
        parts.append(element("polygon", points=" ".join(above + below), class_="band"))
    if known and line.bars:
        ends = [f"M{x(p.iteration)} {y(p.value - (p.spread or 0))}V{y(p.value + (p.spread or 0))}" for p in known]
        parts.append(element("path", d="".join(ends), class_="bar"))
    places = [(x(point.iteration), y(point.value)) for point in line.points]
    parts.append(element("polyline", points=" ".join(f"{across},{down}" for across, down in places)))
    if len(places) <= DOTS and not line.faint:
        # of no length: round ends make dots of it that keep their form
        parts.append(element("path", d="".join(f"M{across} {down}h0" for across, down in places), class_="dot"))
    kind = " ".join([f"c{line.colour % COLOURS}", *["dashed"] * line.dashed, *["faint"] * line.faint])
    spread = " ".join("" if p.spread is None else f"{p.spread:.3g}" for p in line.points) if known else None
    figures = {
        "data_name": line.name,
        "data_x": " ".join(str(point.iteration) for point in line.points),
        "data_y": " ".join(f"{point.value:.5g}" for point in line.points),
        "data_spread": spread and spread.replace("  ", " - "),
    }
    return element("g", *parts, class_=kind, **figures)


def _caption(chart: Chart, lines: Sequence[Line]) -> Markup:
    name = element("code", chart.metric) if chart.metric and chart.metric != chart.title else None
    heading = element("h3", chart.title, " " if name else None, name)
    keys = [
        element("button", element("span", class_=_key(line), aria_hidden="true"), line.name, type="button", aria_pressed="true")
        for line in lines
    ]
    legend = element("div", *keys, class_="legend") if len(lines) > 1 or chart.named else None
    return element("figcaption", heading, element("p", chart.note) if chart.note else None, legend)


def _key(line: Line) -> str:
    return " ".join(["key", f"c{line.colour % COLOURS}", *["dashed"] * line.dashed, *["faint"] * line.faint])


def _describe(chart: Chart, lines: Sequence[Line]) -> str:
    """What a chart shows, for those who do not see it."""
    told = "; ".join(
        f"{line.name} from {format_figure(line.points[0].value)} to {format_figure(line.points[-1].value)}, "
        f"lowest {format_figure(min(point.value for point in line.points))}, "
        f"highest {format_figure(max(point.value for point in line.points))}"
        for line in lines
        if not line.faint
    )
    return f"Line chart of {chart.title}: {told}"


def _table(chart: Chart, lines: Sequence[Line]) -> Markup:
    """The figures themselves, of many iterations the means of stretches."""
    told = [line for line in lines if line.faint] or list(lines)
    told += [line for line in lines if line not in told and line.name.partition(", mean of ")[0] not in {t.name for t in told}]
    iterations = sorted({point.iteration for line in told for point in line.points})
    length = -(-len(iterations) // MOST_ROWS)
    stretches = [iterations[start : start + length] for start in range(0, len(iterations), length)]
    columns = [_cells(line, stretches) for line in told]
    head = element("tr", element("th", "iteration", scope="col"), [element("th", line.name, scope="col") for line in told])
    rows = []
    for place, stretch in enumerate(stretches):
        name = str(stretch[0]) if stretch[0] == stretch[-1] else f"{stretch[0]} to {stretch[-1]}"
        rows.append(element("tr", element("th", name, scope="row"), [element("td", column[place]) for column in columns]))
    caption = element("caption", chart.title if length == 1 else f"{chart.title}: the mean of each stretch of iterations")
    table = element("table", caption, element("thead", head), element("tbody", rows))
    return element(
        "details",
        element("summary", "Table", element("span", f" of {chart.title}", class_="unseen")),
        scrolled(table, f"Table of {chart.title}"),
    )


def _cells(line: Line, stretches: Sequence[Sequence[int]]) -> list[str]:
    """What a line has in each of ``stretches`` of iterations, which follow one another."""
    cells, place, points = [], 0, line.points
    for stretch in stretches:
        end = place
        while end < len(points) and points[end].iteration <= stretch[-1]:
            end += 1
        part, place = points[place:end], max(place, end)
        cells.append(_cell(part, bars=line.bars))
    return cells


def _cell(points: Points, bars: bool) -> str:
    if not points:
        return ""
    mean = format_figure(fmean(point.value for point in points))
    spread = points[0].spread
    return f"{mean} ± {format_figure(spread)}" if bars and len(points) == 1 and spread is not None else mean


def gallery_of(charts: Sequence[Markup]) -> Markup:
    """Charts beside one another; empty where none has anything to show."""
    shown = [chart for chart in charts if chart]
    return element("div", *shown, class_="charts") if shown else Markup()
