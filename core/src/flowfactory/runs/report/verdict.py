"""What is told first: whether it learned, of how many pictures, by what, and what to look at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flowfactory.checkpoint_names import FOLDER
from flowfactory.drift.alarm import Alarm
from flowfactory.runs.best_score import best_sentence
from flowfactory.runs.doctor.diagnosis import diagnose
from flowfactory.runs.doctor.finding import Finding
from flowfactory.runs.facts import ending_sentence, tell_progress
from flowfactory.runs.report.documentation import link_of
from flowfactory.runs.report.markup import Markup, element, join
from flowfactory.runs.report.run_files import RunFiles
from flowfactory.runs.report.sections import section
from flowfactory.runs.report.series import Point
from flowfactory.runs.score_format import format_score, tell_count

ERRORS = 2.0
"""Standard errors of a difference beyond which chance is no likely reason for it."""
MOST_SCORES = 20


class Score(NamedTuple):
    """A mean after ``iteration`` and its standard error, of ``samples`` pictures or videos; NaN and 0 where not told."""

    iteration: int
    mean: float
    error: float
    samples: int

    def __str__(self) -> str:
        error = f" ± {format_score(self.error)}" if math.isfinite(self.error) else ""
        return f"{format_score(self.mean)}{error}"


class Difference(NamedTuple):
    """By how much the score ``after`` is above that ``before``."""

    before: Score
    after: Score

    @property
    def value(self) -> float:
        """The difference itself."""
        return self.after.mean - self.before.mean

    @property
    def error(self) -> float:
        """Its standard error, as if the two had no prompts and no noise in common: at most that large."""
        return math.hypot(self.before.error, self.after.error)

    @property
    def is_told_apart(self) -> bool:
        """Whether it is more than chance explains."""
        return math.isfinite(self.error) and abs(self.value) > ERRORS * self.error

    @property
    def judgement(self) -> str:
        """In words, whether chance explains it."""
        if not math.isfinite(self.error):
            return "of how many pictures is not known"
        return "more than chance explains" if self.is_told_apart else "within noise: chance alone may do as much"

    def markup(self) -> Markup:
        """The difference, coloured where it is more than chance explains, its standard error, and the judgement."""
        sign = ("gained" if self.value > 0 else "lost") if self.is_told_apart else None
        error = f" ± {format_score(self.error)}" if math.isfinite(self.error) else ""
        number = element("strong" if sign else "span", format_score(self.value, sign="+"), class_=sign)
        return join(number, f"{error}, {self.judgement}")


class Change(NamedTuple):
    """A held-out score in the first evaluation and in the last, and the best there was."""

    label: str
    before: Score
    after: Score
    best: Score

    @property
    def difference(self) -> Difference:
        """Between the two."""
        return Difference(self.before, self.after)


def scores_of(run: RunFiles, label: str) -> list[Score]:
    """Every evaluation's score of ``label``."""
    return [_score(record, label) for record in run.records if f"eval/{label}/mean" in record]


def _score(record: Mapping[str, Any], label: str) -> Score:
    std, count = record.get(f"eval/{label}/std", math.nan), record.get("eval/samples", 0)
    known = count >= 1 and std >= 0
    return Score(record["iteration"], record[f"eval/{label}/mean"], std / math.sqrt(count) if known else math.nan, int(count))


def changes(run: RunFiles) -> list[Change]:
    """The change of each held-out score."""
    found = []
    for label in list(run.held_out())[:MOST_SCORES]:
        scores = sorted(scores_of(run, label), key=lambda score: score.iteration)
        best = max(scores, key=lambda score: score.mean)
        found.append(Change(label, scores[0], scores[-1], best))
    return found


def with_errors(run: RunFiles, label: str) -> list[Point]:
    """The points of a held-out score, whose spread is the standard error."""
    scores = sorted(scores_of(run, label), key=lambda score: score.iteration)
    return [Point(s.iteration, s.mean, s.error if math.isfinite(s.error) else None) for s in scores]


def verdict(run: RunFiles, alarms: Sequence[Alarm]) -> Markup:
    """All of it; how the run ended stands first where it is not done."""
    ending = ending_sentence(run.facts)
    best = best_sentence(run.path / FOLDER, run.written, run.records)
    cards = [_card(change, is_video(run)) for change in changes(run)]
    facts = [element("div", element("dt", name), element("dd", told)) for name, told in facts_of(run)]
    return join(
        element("p", ending, class_="end") if ending else None,
        element("div", cards, class_="verdict", id="verdict") if cards else None,
        element("p", best, class_="note") if best else None,
        element("dl", facts, class_="facts"),
        _warnings(run, alarms),
    )


def is_video(run: RunFiles) -> bool:
    """Whether it draws videos, as far as its config tells."""
    return (run.table.number("sampling.frames") or 1) > 1


def _card(change: Change, videos: bool) -> Markup:
    before, after, many = change.before, change.after, change.before.iteration != change.after.iteration
    title = element("h2", f"Held-out score: {change.label}")
    of = f", {tell_count(after.samples, videos)}" if after.samples else ""
    if not many:
        alone = element("p", str(after), class_="numbers")
        return element("div", title, alone, element("p", f"{_when(after)}{of}"), class_="score")
    numbers = [
        *(element("span", format_score(before.mean)), _error(before), " → ", element("strong", format_score(after.mean))),
        _error(after),
    ]
    best = f"; best {format_score(change.best.mean)} {_when(change.best)}" if change.best.mean > after.mean else ""
    return element(
        "div",
        title,
        element("p", numbers, class_="numbers"),
        element("p", change.difference.markup(), best),
        element("p", f"{_when(before)} → {_when(after)}{of}; ± is one standard error", class_="quiet"),
        class_="score",
    )


def _error(score: Score) -> Markup | None:
    return element("small", f" ± {format_score(score.error)}") if math.isfinite(score.error) else None


def _when(score: Score) -> str:
    return f"after iteration {score.iteration}" if score.iteration else "before training"


def seconds_in_iterations(run: RunFiles) -> float:
    """Those of all phases together."""
    columns = (points for name, points in run.columns.items() if name.startswith("seconds/"))
    return sum(point.value for points in columns for point in points if point.iteration > 0)


def facts_of(run: RunFiles) -> Iterator[tuple[str, str]]:
    """What a run is, in a few words each; what it does not tell is left out."""
    trained = run.table.trained
    planned = run.table.number("training.iterations")
    done = max((record["iteration"] for record in trained), default=0)
    yield "iterations", tell_progress(done, planned)
    if seconds := seconds_in_iterations(run):
        yield "time in iterations", duration(seconds)
    if drawn := samples_drawn(run):
        yield ("videos drawn" if is_video(run) else "pictures drawn"), f"{drawn:,}"
    for name, path in (("algorithm", "algorithm.name"), ("model", "model.name"), ("weights", "model.path"), ("seed", "seed")):
        value = run.key(path)
        if type(value) in (str, int):
            yield name, _short(_end_of_path(str(value)) if name == "weights" else str(value))
    rewards = run.key("rewards")
    if isinstance(rewards, Mapping) and rewards:
        yield "rewards", ", ".join(_short(str(label)) for label in list(rewards)[:MOST_SCORES])
    end = run.facts.get("end")
    if isinstance(end, Mapping) and isinstance(end.get("time"), str):
        yield "ended", _short(end["time"])


def _end_of_path(path: str) -> str:
    """A name of the hub as it is; of a path on a disk the last two parts."""
    parts = path.rstrip("/").split("/")
    return "/".join(["…", *parts[-2:]]) if path.startswith("/") and len(parts) > 3 else path


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"…{text[-79:]}"


def samples_drawn(run: RunFiles) -> int:
    """How many pictures or videos were drawn to train on, as far as the config tells."""
    if "seconds/read" in run.columns and "seconds/sample" not in run.columns:  # records are learned from
        return 0
    groups, size = run.table.number("sampling.groups"), run.table.number("sampling.group_size")
    return int(len(run.table.trained) * groups * size) if groups and size else 0


def duration(seconds: float) -> str:
    """``2 h 5 min``, ``5 min 3 s`` or ``3 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600:,} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def findings(run: RunFiles) -> list[Finding]:
    """What the doctor finds; nothing where the figures do not go together as those of a run do."""
    try:
        return diagnose(run.table)
    except (LookupError, ArithmeticError, ValueError):
        return []


def _warnings(run: RunFiles, alarms: Sequence[Alarm]) -> Markup:
    rows = [element("li", f"{finding.what}; {finding.change} ", link_of(finding.page)) for finding in findings(run)]
    if alarms:
        figures = f"{len(alarms)} figures" if len(alarms) > 1 else "a figure"
        told = f"{figures} of what is drawn left where training began while a training reward rose; see "
        rows.append(element("li", told, element("a", "Drift", href="#drift")))
    return section("warnings", "Warnings", element("ul", rows, class_="warnings")).markup() if rows else Markup()
