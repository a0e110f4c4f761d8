"""A run that failed: its own sentence, which metrics do not tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flowfactory.runs.doctor.finding import Finding
from flowfactory.runs.doctor.table import Table
from flowfactory.runs.facts import END, UNDER_WAY

LONGEST = 1000


def failed(table: Table) -> Iterator[Finding]:
    """The run failed, and has not been continued. It ranks below what figures show to be the reason."""
    end = table.fact(END)
    if not isinstance(end, Mapping) or end.get("how") != "failed" or isinstance(table.fact(UNDER_WAY), str):
        return
    what = f"the run failed: {str(end.get('sentence') or 'it does not say why')[:LONGEST]}"
    yield Finding("run-failed", 68, what, "mend what that names, and begin again, or continue with --resume")
