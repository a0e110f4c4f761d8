"""Training rises and the pictures get worse: held-out rewards that fall, and statistics of the pictures that drift."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flowfactory.runs.doctor import names
from flowfactory.runs.doctor.finding import Finding
from flowfactory.runs.doctor.table import Table

ERRORS = 2.0
SOLID_ERRORS, SOLID_EVALUATIONS = 3.0, 3
DRIFTED = 3.0
"""Standard deviations of iteration 0's."""


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
        return f"look at the pictures, and at the checkpoint of iteration {self.best['iteration']}"


def held_out_falls(table: Table) -> Iterator[HeldOutFall]:
    """Every held-out reward that fell while a training reward rose: what reward hacking looks like.

    It fell where its last mean is below its best by more than two standard errors of their difference. A training reward rose
    meanwhile where the mean of the last quarter of the iterations since is above that of the first by as much.
    """
    for label in table.held_out():
        name = f"eval/{label}/mean"
        points = [record for record in table.records if name in record]
        best = max(points, key=lambda record: float(record[name]))
        last = points[-1]
        fall, error = best[name] - last[name], _error(best, last, label)
        if fall <= ERRORS * error:
            continue
        since = [record for record in table.records if best["iteration"] <= record["iteration"] <= last["iteration"]]
        for rising, (before, after) in _rising_rewards(since, table.labels()):
            yield HeldOutFall(label, best, last, rising, before, after, fall / error if error else math.inf)


def hacking_warnings(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each of :func:`held_out_falls`."""
    for fall in held_out_falls(Table(records)):
        yield f"{fall.what}; {fall.change}"


def hacked(table: Table) -> Iterator[Finding]:
    """Held-out rewards that fell while training rose."""
    for fall in held_out_falls(table):
        name = f"eval/{fall.held_out}/mean"
        evidence = {"best": float(fall.best[name]), "last": float(fall.last[name]), "standard_errors": fall.errors}
        change = f"{fall.change}; hold the policy closer: algorithm.kl, or stop by training.early_stop"
        evaluations = sum(name in record for record in table.records)
        solid = fall.errors >= SOLID_ERRORS and evaluations >= SOLID_EVALUATIONS
        evidence = {key: value for key, value in evidence.items() if math.isfinite(value)}
        yield Finding("reward-hacking", 88, fall.what, change, f"{fall.held_out}/{fall.training}", {}, evidence, solid)


def drifted(table: Table) -> Iterator[Finding]:
    """Statistics of the pictures left what they were while a training reward rose."""
    rising = table.rising()
    if not rising:
        return
    far = {}
    for name in {name: None for record in table.trained for name in record if _is_alarm(name)}:
        iteration, value = table.column(name)[-1]
        if abs(value) >= DRIFTED:
            far[name.removeprefix(names.DRIFT).removesuffix(names.ALARM)] = (iteration, value)
    if far:
        most = sorted(far, key=lambda name: -abs(far[name][1]))
        told = ", ".join(f"{name} by {far[name][1]:+.1f} (after iteration {far[name][0]})" for name in most[:3])
        what = f"{rising[0]} rose in training while the pictures changed, in standard deviations of the first ones: {told}"
        change = "look at the pictures; where they got worse, hold the policy closer: algorithm.kl"
        evidence = {name: far[name][1] for name in most}
        yield Finding("drift", 75, what, change, evidence=evidence)


def _is_alarm(name: str) -> bool:
    return name.startswith(names.DRIFT) and name.endswith(names.ALARM)


def _error(one: Mapping[str, Any], other: Mapping[str, Any], label: str) -> float:
    """The standard error of the difference of two evaluations' means, as if their samples had nothing in common."""
    return math.sqrt(
        sum(record.get(f"eval/{label}/std", 0.0) ** 2 / max(1, record.get("eval/samples", 1)) for record in (one, other))
    )


def _rising_rewards(records: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Iterator[tuple[str, tuple[float, float]]]:
    for label in labels:
        values = [float(record[name]) for record in records if (name := f"reward/{label}/mean") in record]
        if len(values) < 2 or not any(f"advantage/{label}/share" in record for record in records):
            continue  # what is only watched is no reason to suspect
        count = max(1, len(values) // 4)
        (before, one), (after, other) = (_mean_and_variance(part) for part in (values[:count], values[-count:]))
        if after - before > ERRORS * math.sqrt((one + other) / count):
            yield label, (before, after)


def _mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / len(values)
