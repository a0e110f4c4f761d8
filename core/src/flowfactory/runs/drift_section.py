"""The part of the report about drift: the alarms, and the course of each figure of the drift panel."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from flowfactory.drift.alarm import HELD_OUT, TITLES, TRAINING, Alarm, drift_alarms
from flowfactory.runs.charts import COLOURS, Points, Style, chart

STYLES = {TRAINING: Style(COLOURS[0]), HELD_OUT: Style(COLOURS[1], dashed=True)}


def alarms_of(records: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """The alarms of a run; none where the figures do not go together as those of a run do."""
    try:
        return drift_alarms(records)
    except (LookupError, ArithmeticError, ValueError):
        return []


def drift_section(records: Sequence[Mapping[str, Any]], alarms: Sequence[Alarm]) -> str:
    """The section as HTML, empty where ``records`` have no figure of the panel."""
    figures = "".join(_figure(records, name) for name in TITLES)
    if not figures:
        return ""
    told = (
        f"<span style='color:{STYLES[TRAINING].colour}'>━</span> training · "
        f"<span style='color:{STYLES[HELD_OUT].colour}'>┅</span> held out"
    )
    return f"<h2>Drift</h2>{_list(alarms)}<p>{told}</p><div class=charts>{figures}</div>"


def _list(alarms: Sequence[Alarm]) -> str:
    rows = "".join(f"<li>{html.escape(alarm.sentence())}" for alarm in alarms)
    return f"<ul class=warnings>{rows}</ul>" if rows else ""


def _figure(records: Sequence[Mapping[str, Any]], name: str) -> str:
    lines: dict[str, Points] = {}
    for prefix in STYLES:
        points = [(record["iteration"], record[prefix + name]) for record in records if prefix + name in record]
        if points:
            lines[prefix] = points
    drawn = chart(*lines.values(), styles=[STYLES[prefix] for prefix in lines])
    return f"<figure><figcaption>{html.escape(TITLES[name])}</figcaption>{drawn}</figure>" if drawn else ""
