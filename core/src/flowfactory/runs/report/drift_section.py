"""The part of the report about drift: the alarms, and the course of each figure of the drift panel."""

from __future__ import annotations

from collections.abc import Sequence

from flowfactory.drift.alarm import HELD_OUT, TITLES, TRAINING, Alarm, drift_alarms
from flowfactory.runs.report.charts import Axis, Chart, Line, smoothed
from flowfactory.runs.report.curves import draw_all
from flowfactory.runs.report.markup import element
from flowfactory.runs.report.run_files import RunFiles
from flowfactory.runs.report.sections import Section, section


def alarms_of(run: RunFiles) -> list[Alarm]:
    """The alarms of a run; none where the figures do not go together as those of a run do."""
    try:
        return drift_alarms(run.records)
    except (LookupError, ArithmeticError, ValueError):
        return []


def drift_charts(run: RunFiles) -> list[Chart]:
    """A chart of each figure of the panel, of the training samples and of the held-out ones."""
    found = []
    for name, title in TITLES.items():
        lines: list[Line] = []
        if training := run.columns.get(TRAINING + name):
            lines += smoothed(Line("training", training))
        if held_out := run.columns.get(HELD_OUT + name):
            lines.append(Line("held out", held_out, 1, dashed=True))
        found.append(Chart(title[:1].upper() + title[1:], lines, TRAINING + name))
    if distance := run.columns.get("drift/z"):
        note = "In standard deviations, of the figure that is farthest from where it started; beyond 3 is far."
        found.append(Chart("Farthest from the start", smoothed(Line("distance", distance)), "drift/z", note))
    return found


def drift_section(run: RunFiles, axis: Axis, alarms: Sequence[Alarm]) -> Section:
    """The section, empty where there is no figure of the panel."""
    charts = draw_all(drift_charts(run), axis)
    rows = [element("li", alarm.sentence()) for alarm in alarms]
    return section("drift", "Drift", element("ul", rows, class_="warnings") if rows and charts else None, charts)
