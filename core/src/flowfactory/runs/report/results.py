"""What several runs reached: the scores of each before and after, and whether they differ from those of the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowfactory.runs.report.markup import Markup, element, join, scrolled
from flowfactory.runs.report.run_files import RunFiles
from flowfactory.runs.report.verdict import (
    Change,
    Difference,
    changes,
    duration,
    findings,
    samples_drawn,
    scores_of,
    seconds_in_iterations,
)
from flowfactory.runs.score_format import format_score

MOST_LABELS = 20
NOTE = (
    "± is one standard error. A difference of more than two of its own is more than chance explains; its two sides are taken "
    "for independent. The doctor's warnings stand in each run's own report."
)


def results(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup:
    """A table of what each run reached, one of how the others differ from the first, and what to be aware of."""
    labels = list(dict.fromkeys(label for run in runs for label in run.held_out()))[:MOST_LABELS]
    heads = ["run", *(f"held-out {label}" for label in labels), "iterations", "time in iterations", "drawn", "warnings"]
    rows = [_row(run, name, labels) for run, name in zip(runs, names, strict=True)]
    return join(
        _lengths(runs, names),
        scrolled(_table(heads, rows), "Results"),
        _contrasts(runs, names, labels),
        element("p", NOTE, class_="note"),
    )


def _table(heads: Sequence[str], rows: Sequence[Markup]) -> Markup:
    head = element("thead", element("tr", [element("th", each, scope="col") for each in heads]))
    return element("table", head, element("tbody", rows), class_="results")


def _row(run: RunFiles, name: str, labels: Sequence[str]) -> Markup:
    """What a run reached."""
    found = {change.label: change for change in changes(run)}
    cells: list[Any] = [_cell(found[label]) if label in found else "" for label in labels]
    time = duration(seconds_in_iterations(run))
    cells += [str(run.last_iteration), time, f"{samples_drawn(run):,}", str(len(findings(run)))]
    return element("tr", element("th", name, scope="row"), [element("td", cell) for cell in cells])


def _cell(change: Change) -> list[Any]:
    """The score before and after, the difference, and the best there was."""
    if change.before.iteration == change.after.iteration:
        return [element("strong", str(change.after)), element("br"), f"after iteration {change.after.iteration} alone"]
    best = f"best {format_score(change.best.mean)} after {change.best.iteration}"
    numbers = [f"{change.before} → ", element("strong", str(change.after))]
    return [*numbers, element("br"), change.difference.markup(), element("br"), best]


def _lengths(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup | None:
    """Of runs that made different numbers of iterations, that they did."""
    made = [run.last_iteration for run in runs]
    if len(set(made)) == 1:
        return None
    told = ", ".join(f"{name} {count}" for name, count in zip(names, made, strict=True))
    return element("p", f"The runs made different numbers of iterations: {told}.", class_="end")


def _contrasts(runs: Sequence[RunFiles], names: Sequence[str], labels: Sequence[str]) -> Markup | None:
    """How the held-out scores of the others differ from those of the first run."""
    rows = []
    for run, name in zip(runs[1:], names[1:], strict=True):
        cells = [_contrast(runs[0], run, label) for label in labels]
        rows.append(element("tr", element("th", name, scope="row"), [element("td", cell) for cell in cells]))
    if not rows or not labels:
        return None
    heads = [f"against {names[0]}", *(f"held-out {label}" for label in labels)]
    return scrolled(_table(heads, rows), f"Differences from {names[0]}")


def _contrast(first: RunFiles, other: RunFiles, label: str) -> list[Any] | None:
    """The difference in the last evaluation after training that both have, or else in the last of each."""
    pair = _pair(first, other, label)
    if pair is None:
        return None
    when = f"after iteration {pair.after.iteration}"
    if pair.before.iteration != pair.after.iteration:
        when += f", and {pair.before.iteration} of the other: no evaluation after the same iteration"
    return [pair.markup(), element("br"), when]


def _pair(first: RunFiles, other: RunFiles, label: str) -> Difference | None:
    """The scores of two runs that are compared; None where one has none since training began."""
    ours, theirs = ({s.iteration: s for s in scores_of(run, label) if s.iteration} for run in (first, other))
    if not ours or not theirs:
        return None
    common = ours.keys() & theirs.keys()
    return Difference(ours[max(common or ours)], theirs[max(common or theirs)])
