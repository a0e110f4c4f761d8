"""Several runs on one page: their scores, where their configs differ, curves together, the same prompts side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from flowfactory.config.wording import written
from flowfactory.errors import UserError
from flowfactory.runs.report.charts import Axis, Chart, Line, smoothed
from flowfactory.runs.report.curves import MOST_CHARTS, TOPICS, draw_all, members
from flowfactory.runs.report.gallery import Column, Plan, embed, evaluation_columns, format_scores, plan_gallery, samples_by_key
from flowfactory.runs.report.markup import Markup, element, join, scrolled
from flowfactory.runs.report.page import whole_page, write_page
from flowfactory.runs.report.results import results
from flowfactory.runs.report.run_files import RunFiles, Say, read_run
from flowfactory.runs.report.sections import Section, section
from flowfactory.runs.report.verdict import with_errors

MOST_RUNS = 12
NAME = "comparison.html"
MOST_DIFFERENCES, LONGEST = 500, 200
"""Keys that differ; and characters of a value."""
BESIDE = "These do not change what is learned"
UNSEEN = ("output.dir",)
"""Keys that differ between any two runs, and say nothing."""


def write_comparison(folders: Sequence[Path], say: Say, out: Path | None = None) -> Path:
    """The path of the page that compares the runs in ``folders``: ``out``, or comparison.html in the present folder.

    UserError: they are too many. OSError: the page cannot be written.
    """
    if len(folders) > MOST_RUNS:
        raise UserError(f"{len(folders)} runs are too many for one page; name at most {MOST_RUNS}")
    return write_page(comparison_page([read_run(folder, say) for folder in folders], say), out or Path(NAME))


def comparison_page(runs: Sequence[RunFiles], say: Say) -> Markup:
    """The comparison as a page."""
    names = name_runs([run.path for run in runs])
    axis = Axis(0, max(1, *(run.last_iteration for run in runs)))
    charts = [section("scores", "Scores", draw_all(_score_charts(runs, names), axis))]
    charts += [section(name, title, draw_all(found, axis)) for name, title, found in _topics(runs, names)]
    top = join(*(part.markup() for part in (section("results", "Results", results(runs, names)), _differences(runs, names))))
    return whole_page("Comparison of runs", top, [_pictures(runs, names, say)], charts, [])


def name_runs(paths: Sequence[Path]) -> list[str]:
    """A name for each run: that of its folder, with as many folders above as tell it from the others."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _differences(runs: Sequence[RunFiles], names: Sequence[str]) -> Section:
    """The keys of the configs that differ, and nothing else of them."""
    flat = [dict(flatten(run.written)) for run in runs]
    keys = [key for key in dict.fromkeys(key for each in flat for key in each) if key not in UNSEEN]
    differing = [key for key in keys if len({each.get(key, "") for each in flat}) > 1]
    learned, beside = ([key for key in differing if is_beside(key) is which] for which in (False, True))
    told = [element("tr", element("th", BESIDE, scope="rowgroup", colspan=len(runs) + 1))] if beside else []
    room = MOST_DIFFERENCES
    rows = [*_rows(learned[:room], flat), *told, *_rows(beside[: max(0, room - len(learned))], flat)]
    head = element("thead", element("tr", [element("th", each, scope="col") for each in ("key", *names)]))
    left = len(differing) - MOST_DIFFERENCES
    note = element("p", f"{left} more keys differ.", class_="note") if left > 0 else None
    same = element("p", "The configs are the same.") if not rows else None
    table = scrolled(element("table", head, element("tbody", rows)), "Differences of the configs") if rows else None
    return section("config", "Where the configs differ", table, note, same)


def is_beside(key: str) -> bool:
    """Whether a key of a config decides what is kept and told of a run, and nothing of what it learns."""
    return key.partition(".")[0] in ("output", "trackers") or key == "evaluation.pictures"


def _rows(keys: Sequence[str], flat: Sequence[Mapping[str, str]]) -> list[Markup]:
    """A row for each of ``keys`` with what the configs have."""
    return [
        element("tr", element("th", element("code", key), scope="row"), [element("td", each.get(key, "–")) for each in flat])
        for key in keys
    ]


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a config with all keys above it, and its value as it is written."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else str(key))
    elif path:
        told = written(value)
        yield path, told if len(told) <= LONGEST else f"{told[:LONGEST]}…"


def _score_charts(runs: Sequence[RunFiles], names: Sequence[str]) -> Iterator[Chart]:
    """Held-out scores, then rewards: a line for each run."""
    for label in islice(dict.fromkeys(label for run in runs for label in run.held_out()), MOST_CHARTS):
        named = enumerate(zip(runs, names, strict=True))
        lines = [Line(name, with_errors(run, label), i, bars=True) for i, (run, name) in named]
        yield Chart(f"Held-out score: {label}", lines, f"eval/{label}/mean", "Bars are one standard error.", named=True)
    for label in islice(dict.fromkeys(label for run in runs for label in run.rewards()), MOST_CHARTS):
        yield _together(runs, names, f"reward/{label}/mean", f"Reward while training: {label}")


def _topics(runs: Sequence[RunFiles], names: Sequence[str]) -> Iterator[tuple[str, str, list[Chart]]]:
    """The charts of each topic, one for each metric."""
    metrics = list(dict.fromkeys(name for run in runs for name in run.columns))
    for topic in TOPICS:
        charts = []
        for family in topic.families:
            found = dict(members(metrics, family))
            for name, line in found.items():
                title = f"{family.title}: {line}" if len(found) > 1 else family.title
                charts.append(_together(runs, names, name, title, family.note))
        yield topic.name, topic.title, charts[:MOST_CHARTS]


def _together(runs: Sequence[RunFiles], names: Sequence[str], metric: str, title: str, note: str = "") -> Chart:
    lines = [
        replace(smoothed(Line(name, run.columns[metric], i))[-1], name=name)
        for i, (run, name) in enumerate(zip(runs, names, strict=True))
        if metric in run.columns
    ]
    return Chart(title, lines, metric, note, named=True)


def _pictures(runs: Sequence[RunFiles], names: Sequence[str], say: Say) -> Section:
    """The prompts that all runs drew in their last evaluations, and what the first run drew before training."""
    heading = "pictures", "Same prompts, side by side"
    evaluations = [evaluation_columns(run, say) for run in runs]
    if not all(evaluations):
        return section(*heading)
    columns = [Column(f"{name}, {each[-1].name}", each[-1].samples, run.path)
               for run, name, each in zip(runs, names, evaluations, strict=True)]  # fmt: skip
    if runs[0].evaluated()[0] == 0 and len(evaluations[0]) > 1:
        columns.insert(0, Column(f"{names[0]}, before training", evaluations[0][0].samples, runs[0].path))
    aligned = align(columns)
    plan = plan_gallery(aligned, keep=len(aligned))
    if not plan.columns:
        return section(*heading)
    shown = embed(plan, say)
    cards = [_card(plan, shown, place) for place in range(plan.prompts)]
    every = len(aligned[0].samples)
    told = f"{plan.prompts} of {every} prompts that all runs drew, each after its last evaluation."
    return section(*heading, element("p", told, class_="note"), element("ul", cards, class_="compared", role="list"))


def _card(plan: Plan, shown: Sequence[Sequence[Markup]], place: int) -> Markup:
    """A prompt, and what each column has of it."""
    parts = []
    for column, media in zip(plan.columns, shown, strict=True):
        scores = element("p", format_scores(column.samples[place]["scores"]))
        parts.append(element("div", element("p", column.name), media[place], scores, class_="shown"))
    prompt = element("p", plan.columns[0].samples[place]["prompt"], class_="prompt told")
    return element("li", prompt, element("div", parts, class_=f"side many of{columns_of(len(parts))}"))


def columns_of(count: int) -> int:
    """Into how many columns ``count`` pictures go, at most four, so that the last row is nearly full."""
    return math.ceil(count / math.ceil(count / 4))


def align(columns: Sequence[Column]) -> list[Column]:
    """``columns`` with the prompts that all of them have, in the order of the first; the second of a prompt with the second."""
    known = [samples_by_key(column) for column in columns]
    common = [key for key in known[0] if all(key in samples for samples in known)]
    return [column._replace(samples=[found[key] for key in common]) for column, found in zip(columns, known, strict=True)]
