from __future__ import annotations

import math
import re
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfactory.runs.report.charts import Axis, Chart, Line, draw, format_scale, round_scale, smoothed
from flowfactory.runs.report.markup import element
from flowfactory.runs.report.series import MOST_POINTS, MOST_ROWS, Point, smooth, thin, window

NASTY = "<script>alert(1)</script> & \"double\" 'single'"


def line_of(*values: float, name: str = "loss", spread: float | None = None, bars: bool = False) -> Line:
    return Line(name, [Point(i, value, spread) for i, value in enumerate(values)], bars=bars)


def heights(svg: str) -> list[float]:
    found = re.search(r'<polyline points="(.*?)"', svg)
    assert found
    return [float(pair.partition(",")[2]) for pair in found[1].split()]


def test_a_curve_goes_from_corner_to_corner() -> None:
    svg = draw(Chart("loss", [line_of(-1.0, 0.0, 1.0)]), Axis(0, 2))
    assert '<polyline points="0.0,1000.0 500.0,500.0 1000.0,0.0"' in svg
    assert re.findall("<span>(.*?)</span>", svg) == ["1", "0.5", "0", "-0.5", "-1", "0", "1", "2"]


@given(st.floats(-1e100, 1e100), st.floats(-1e100, 1e100))
def test_whatever_the_values_are_they_lie_on_a_scale_of_round_numbers(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    scale = round_scale(low, high)
    assert len(scale) == 5
    step = (scale[0] - scale[-1]) / 4
    assert scale[-1] <= low + 1e-8 * step
    assert scale[0] >= high - 1e-8 * step
    assert all(math.isfinite(value) for value in scale)
    assert scale[0] > scale[-1]


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.33, 0.63, ["0.7", "0.6", "0.5", "0.4", "0.3"]),
        (0.0, 0.0, ["1", "0.75", "0.5", "0.25", "0"]),
        (0.99997, 1.00001, ["1.00001", "1", "0.99999", "0.99998", "0.99997"]),
        (-1e30, 1e30, ["1e+30", "5e+29", "0", "-5e+29", "-1e+30"]),
        (2e-5, 9e-5, ["0.0001", "8e-05", "6e-05", "4e-05", "2e-05"]),
    ],
)
def test_a_scale_is_labelled_with_as_many_digits_as_tell_its_numbers_apart(low: float, high: float, told: list[str]) -> None:
    assert format_scale(round_scale(low, high)) == told


def test_bars_and_bands_are_within_the_chart() -> None:
    for bars in (True, False):
        svg = draw(Chart("score", [line_of(0.4, 0.5, spread=0.25, bars=bars)]), Axis(0, 1))
        ends = [float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)V", svg) + re.findall(r"V([\d.]+)", svg)]
        places = (
            [float(y) for y in re.findall(r",([\d.-]+)", re.findall(r'<polygon points="(.*?)"', svg)[0])] if not bars else ends
        )
        assert len(places) == 4
        assert all(0 <= place <= 1000 for place in places)
        assert 'data-spread="0.25 0.25"' in svg


def test_the_running_mean_is_that_of_its_window() -> None:
    values = [math.sin(i) + 1e6 for i in range(57)]
    points = [Point(i, value, 0.5) for i, value in enumerate(values)]
    assert window(points) == 5
    found = smooth(points)
    assert [point.iteration for point in found] == list(range(57))
    for i in range(2, 55):
        assert found[i].value == pytest.approx(statistics.fmean(values[i - 2 : i + 3]), abs=1e-9)
    assert (found[0].value, found[1].value) == (values[0], pytest.approx(statistics.fmean(values[:3])))
    assert {point.spread for point in found} == {0.5}


def test_a_line_of_few_points_is_drawn_as_it_is() -> None:
    assert smoothed(line_of(*range(19))) == [line_of(*range(19))]
    raw, mean = smoothed(line_of(*range(20)))
    assert (raw.faint, mean.faint, mean.name) == (True, False, "loss, mean of 3")


def test_of_a_long_line_the_peaks_are_kept_and_no_more_than_is_seen() -> None:
    values = [0.0] * 10_000
    values[4321], values[8765] = 5.0, -7.0
    kept = thin([Point(i, value) for i, value in enumerate(values)])
    assert len(kept) <= MOST_POINTS
    assert (4321, 5.0, None) in kept
    assert (8765, -7.0, None) in kept
    assert all(before.iteration < after.iteration for before, after in pairwise(kept))
    assert len(smooth([Point(i, value) for i, value in enumerate(values)])) <= MOST_POINTS + 1


def test_the_table_has_every_value_of_a_short_line_and_means_of_a_long_one() -> None:
    short = draw(Chart("score", [line_of(0.25, 0.5, name="one", spread=0.1, bars=True), line_of(1.0, name="two")]), Axis(0, 1))
    assert re.findall(r"<t[dh]\b.*?>(.*?)</t[dh]>", short) == [
        *("iteration", "one", "two"),
        *("0", "0.25 ± 0.1", "1"),
        *("1", "0.5 ± 0.1", ""),
    ]
    long = draw(Chart("score", [line_of(*range(100))]), Axis(0, 99))
    rows = re.findall('<th scope="row">(.*?)</th><td>(.*?)</td>', long)
    assert len(rows) <= MOST_ROWS
    assert rows[:2] == [("0 to 2", "1"), ("3 to 5", "4")]
    assert rows[-1] == ("99", "99")


def test_text_is_text_wherever_it_stands() -> None:
    svg = draw(Chart(NASTY, [line_of(1.0, name=NASTY)], metric=NASTY, note=NASTY, named=True), Axis(0, 1))
    assert "<script" not in svg
    assert element("p", NASTY, title=NASTY).count("<") == 2
    assert '"' not in element("p", title=NASTY).removeprefix('<p title="').removesuffix('"></p>')
    assert draw(Chart("nothing", [Line("none", [])]), Axis(0, 1)) == ""
