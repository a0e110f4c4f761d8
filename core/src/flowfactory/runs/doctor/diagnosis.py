"""All rules over one table, ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flowfactory.runs.doctor.bounds import at_a_bound, first_ratio, reference_follows
from flowfactory.runs.doctor.failed import failed
from flowfactory.runs.doctor.fell import fell
from flowfactory.runs.doctor.finding import Finding
from flowfactory.runs.doctor.flat import flat, no_spread
from flowfactory.runs.doctor.hacked import drifted, hacked
from flowfactory.runs.doctor.supply import one_dominates, prompts_used_up, slow_judge
from flowfactory.runs.doctor.table import Table
from flowfactory.runs.doctor.velocity import velocities_grow

RULES: tuple[Callable[[Table], Iterator[Finding]], ...] = (
    *(failed, no_spread, flat),
    *(fell, velocities_grow, hacked, drifted),
    *(first_ratio, at_a_bound, reference_follows),
    *(one_dominates, prompts_used_up, slow_judge),
)


def diagnose(table: Table) -> list[Finding]:
    """What is wrong, the likeliest to keep the run from learning first."""
    return sorted((finding for rule in RULES for finding in rule(table)), key=lambda finding: -finding.weight)
