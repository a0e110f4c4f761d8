"""Training rises and the pictures get worse: held-out rewards that fall, and statistics of the pictures that drift."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flowfactory.reward_trends import quarter, rising_rewards
from flowfactory.runs.doctor import names
from flowfactory.runs.doctor.finding import Finding
from flowfactory.runs.doctor.settings import hold_closer
from flowfactory.runs.doctor.table import Table, mean, noise_without_jumps

ERRORS = 2.0
SOLID_ERRORS, SOLID_EVALUATIONS = 1.0, 3
"""More than what is told of, for a run that looks at each evaluation; and as many as say how a score goes."""


class HeldOutFall(NamedTuple):
    """A held-out reward fell from its best to its last evaluation while a training reward rose."""

    held_out: str
    best: Mapping[str, Any]
    last: Mapping[str, Any]
    training: str
    before: float
    after: float
    errors: float

    @property
    def what(self) -> str:
        """In words."""
        name = f"eval/{self.held_out}/mean"
        return (
            f"{self.training} rose from {self.before:.4g} to {self.after:.4g} in training while held-out {self.held_out} fell "
            f"from {self.best[name]:.4g} (after iteration {self.best['iteration']}) to {self.last[name]:.4g} (after "
            f"{self.last['iteration']}): this is what reward hacking looks like"
        )

    @property
    def change(self) -> str:
        """What to do."""
        if not self.best["iteration"]:
            return "look at the pictures, and compare them with those before training"
        return f"look at the pictures, and at the checkpoint of iteration {self.best['iteration']}"


def held_out_falls(table: Table) -> Iterator[HeldOutFall]:
    """Every held-out reward that fell while a training reward rose: what reward hacking looks like.

    A training reward rose meanwhile where the mean of the last quarter of the iterations since is above that of the first by
    more than two standard errors, by the noise of the whole run: a quarter may be one iteration.
    """
    for label in table.held_out():
        if (fall := fall_from_best(table, label)) is None:
            continue
        best, last, errors = fall
        for rising in table.labels():
            points = table.column(f"reward/{rising}/mean")
            since = [point for point in points if best["iteration"] <= point[0] <= last["iteration"]]
            if len(since) < 2:
                continue
            count = quarter(len(since))
            before, after = mean(since[:count]), mean(since[-count:])
            if after - before > ERRORS * noise_without_jumps(points) * math.sqrt(2 / count):
                yield HeldOutFall(label, best, last, rising, before, after, errors)


def fall_from_best(table: Table, label: str) -> tuple[Mapping[str, Any], Mapping[str, Any], float] | None:
    """A held-out reward's best and last evaluation, and by how many standard errors it fell; None where it did not.

    It fell where that is more than ERRORS, and more than the best of as many evaluations stands out by chance. One of a weight
    below 0 is to fall.
    """
    name = f"eval/{label}/mean"
    points = [record for record in table.records if name in record]
    if not points or table.weight(label) < 0:
        return None
    best, last = max(points, key=lambda record: float(record[name])), points[-1]
    fall, error = best[name] - last[name], _error(best, last, label)
    if fall <= 0 or fall <= error * least_errors(len(points)):
        return None
    return best, last, fall / error if error else math.inf


def least_errors(evaluations: int) -> float:
    """Standard errors below the best of so many, from which chance hardly explains it: the best of many is high by chance."""
    return math.sqrt(ERRORS**2 + 2 * math.log(evaluations))


def hacking_warnings(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each of :func:`held_out_falls`."""
    for fall in held_out_falls(Table(records)):
        yield f"{fall.what}; {fall.change}"


def hacked(table: Table) -> Iterator[Finding]:
    """Held-out rewards that fell while training rose."""
    for fall in held_out_falls(table):
        name = f"eval/{fall.held_out}/mean"
        evidence = {"best": float(fall.best[name]), "last": float(fall.last[name]), "standard_errors": fall.errors}
        change = f"{fall.change}; {hold_closer(table)}, or stop by training.early_stop"
        evaluations = sum(name in record for record in table.records)
        solid = fall.errors >= least_errors(evaluations) + SOLID_ERRORS and evaluations >= SOLID_EVALUATIONS
        evidence = {key: value for key, value in evidence.items() if math.isfinite(value)}
        yield Finding("reward-hacking", 88, fall.what, change, f"{fall.held_out}/{fall.training}", {}, evidence, solid)


def drifted(table: Table) -> Iterator[Finding]:
    """Statistics of the pictures are far from what they were; that a training reward rose meanwhile the alarm has seen to."""
    alarms = table.recent(names.DRIFT_ALARM)
    if not alarms or not alarms[-1][1]:
        return
    distance = table.recent(names.DRIFT_DISTANCE)
    far = f", by {distance[-1][1]:.1f} standard deviations at most" if distance else ""
    since = next((iteration for iteration, value in table.column(names.DRIFT_ALARM) if value), alarms[-1][0])
    told = f"{alarms[-1][1]:g} statistics of the pictures are far from those of the first ones{far}, since iteration {since}"
    change = f"look at the pictures; where they got worse, {hold_closer(table)}"
    evidence = {names.DRIFT_ALARM: alarms[-1][1], "since": float(since)}
    rose = next((label for label, _ in rising_rewards(table.records, table.reward_names())), "a reward")
    yield Finding("drift", 75, f"{rose} rose in training, and {told}", change, evidence=evidence)


def _error(one: Mapping[str, Any], other: Mapping[str, Any], label: str) -> float:
    """The standard error of the difference of two evaluations' means, as if their samples had nothing in common."""
    return math.sqrt(
        sum(record.get(f"eval/{label}/std", 0.0) ** 2 / max(1, record.get("eval/samples", 1)) for record in (one, other))
    )
