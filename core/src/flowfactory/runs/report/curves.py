"""Which metrics are drawn together, in which section, and under what name. Every metric of a run is drawn somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from flowfactory.drift.alarm import TITLES
from flowfactory.runs.report.charts import Axis, Chart, Line, draw, gallery_of, smoothed
from flowfactory.runs.report.markup import Markup, element
from flowfactory.runs.report.run_files import RunFiles
from flowfactory.runs.report.sections import Section, section
from flowfactory.runs.report.series import Point, Points, with_spread
from flowfactory.runs.report.verdict import with_errors

MOST_CHARTS, MOST_LINES = 200, 16
"""Of a section; and of a chart."""


class Family(NamedTuple):
    """Metrics whose names match ``pattern`` on one chart, whose lines are named by what the pattern's group finds."""

    title: str
    pattern: str
    note: str = ""


class Topic(NamedTuple):
    """A section of charts."""

    name: str
    title: str
    families: Sequence[Family]


TOPICS = (
    Topic(
        "learning",
        "What it learns from",
        (
            Family("Rewards by source", r"source/([^/]+/[^/]+)/mean", "Means over the prompts of each source."),
            Family("Held-out scores by source", r"source/([^/]+/eval/[^/]+)/mean"),
            Family("Shares of the advantage", r"advantage/(.+)/share", "Of its variance, by the reward that supplies it."),
            Family("Correlation of rewards", r"correlation/(.+)", "Of two rewards within groups: below 0 they pull apart."),
            Family("Groups that teach nothing", r"reward/(.+)/flat|groups/(equal)", "The share whose scores are all equal."),
        ),
    ),
    Topic(
        "policy",
        "How far it moves",
        (
            Family("KL", r"(kl|kl_old|kl/.+|kl_old/.+)", "From the model that training started from, or the old policy."),
            Family("Weight of the KL", r"(kl_coefficient|kl_gate/.+|kl_reference/.+)"),
            Family("Ratio, mean", r"(ratio/mean)", "How likely samples are now by how likely they were when drawn."),
            Family("Ratio, farthest from 1", r"ratio/(max_deviation|sampling_deviation)"),
            Family("Clipped", r"((?:clip|masked)_fraction(?:/.+)?)", "The share of losses whose gradient is cut off."),
            Family("Effective sample size", r"(effective_sample_size)"),
            Family("Gradient norm", r"(grad_norm)", "Before it is clipped."),
            Family("Gradient norm by part", r"grad_norm/(.+)"),
            Family("Change of the weights in an iteration", r"(weights/update)", "By the norm of the weights."),
            Family("Change of the weights since the start", r"(weights/moved)", "By the norm of the weights."),
            Family("Size of the velocity", r"(velocity_norm)", "By that of the model that training started from."),
            Family("Root mean square of the velocity", r"(velocity_rms(?:/.+)?)"),
            Family("Loss", r"(loss)"),
            Family("Learning rate", r"(lr)"),
        ),
    ),
    Topic(
        "time",
        "Time and memory",
        (
            Family("Seconds by phase", r"seconds/(.+)", "Of each iteration."),
            Family("Peak memory, MiB", r"(peak_memory_mb)"),
        ),
    ),
)
ELSEWHERE = re.compile(
    r"iteration|eval/.+|reward/.+/(?:mean|std|group_std)|drift/.+/std|drift/(?:z|alarm|(?:heldout/)?(?:groups|"
    + "|".join(TITLES)
    + "))"
)
"""Metrics that have a section of their own, or are the spread or the number of another."""


def reward_charts(run: RunFiles) -> list[Chart]:
    """The mean of each training reward, with the spread of the groups' means where the run tells it."""
    found = []
    for label, points in islice(run.rewards().items(), MOST_CHARTS):
        spread = run.columns.get(f"reward/{label}/group_std")
        line = Line(label, with_spread(points, spread) if spread else points)
        note = "The band is one standard deviation of the groups' means." if spread else ""
        found.append(Chart(f"Reward while training: {label}", smoothed(line), f"reward/{label}/mean", note))
    return found


def held_out_charts(run: RunFiles) -> Iterator[Chart]:
    """Each held-out score with its standard error."""
    for label in islice(run.held_out(), MOST_CHARTS):
        line = Line(label, with_errors(run, label), 1, dashed=True, bars=True)
        yield Chart(f"Held-out score: {label}", [line], f"eval/{label}/mean", "Bars are one standard error.")


def topic_charts(run: RunFiles) -> Iterator[tuple[str, str, list[Chart]]]:
    """The name, the title and the charts of each topic, and what no topic names last."""
    seen: set[str] = set()
    for topic in TOPICS:
        charts = []
        for family in topic.families:
            named = dict(members(run.columns, family))
            seen |= named.keys()
            if named:
                charts.append(_chart(run, family.title, named, family.note))
        yield topic.name, topic.title, charts
    rest = [name for name in run.columns if name not in seen and not ELSEWHERE.fullmatch(name)]
    yield "others", "Whatever else is logged", [_chart(run, name, {name: name}) for name in rest[:MOST_CHARTS]]


def members(columns: Iterable[str], family: Family) -> Iterator[tuple[str, str]]:
    """The metrics of a family, each with the name of its line."""
    for name in columns:
        if found := re.fullmatch(family.pattern, name):
            yield name, next(group for group in found.groups() if group is not None)


def _chart(run: RunFiles, title: str, named: Mapping[str, str], note: str = "") -> Chart:
    lines = [Line(name, run.columns[metric], i) for i, (metric, name) in enumerate(islice(named.items(), MOST_LINES))]
    if len(lines) == 1:
        return Chart(title, smoothed(lines[0]), next(iter(named)), note)
    left = f" {len(named) - MOST_LINES} more are in metrics.jsonl." if len(named) > MOST_LINES else ""
    return Chart(title, [smoothed(line)[-1] for line in lines], note=note + left)


def together_chart(run: RunFiles) -> Chart | None:
    """Rewards and held-out scores, each on a scale of its own, so that one that falls as others rise is seen."""
    rewards, held = run.rewards(), run.held_out()
    if not rewards or not any(len(points) > 1 for points in held.values()):
        return None
    lines = [smoothed(Line(f"{label} in training", points))[-1] for label, points in rewards.items()]
    lines += [Line(f"{label} held out", points, dashed=True) for label, points in held.items()]
    scaled = [replace(line, points=scale_to_unit(line.points), colour=i) for i, line in enumerate(lines[:MOST_LINES])]
    return Chart("Training and held out together", scaled, note="Each from its lowest (0) to its highest (1).")


def scale_to_unit(points: Points) -> list[Point]:
    """``points`` from 0 at their lowest to 1 at their highest."""
    low, high = min(point.value for point in points), max(point.value for point in points)
    return [Point(point.iteration, (point.value - low) / ((high - low) or 1)) for point in points]


def curves(run: RunFiles, axis: Axis) -> list[Section]:
    """The sections of charts, but for that of the drift panel."""
    together = together_chart(run)
    overview = element("div", draw(together, axis), class_="wide") if together else None
    scores = draw_all([*reward_charts(run), *held_out_charts(run)], axis)
    topics = (section(name, title, draw_all(charts, axis)) for name, title, charts in topic_charts(run))
    return [section("scores", "Scores", overview, scores), *topics]


def draw_all(charts: Iterable[Chart], axis: Axis) -> Markup:
    """``charts`` beside one another."""
    return gallery_of([draw(chart, axis) for chart in charts])
