"""Velocities that run away from those of the model that training started from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from flowfactory.runs.doctor import names
from flowfactory.runs.doctor.finding import Finding
from flowfactory.runs.doctor.settings import hold_closer, scaled_rate
from flowfactory.runs.doctor.table import LEAST, RECENT, Table, halves

FAR = 10.0
"""Times the velocity of where training started, beyond which nothing learns."""
GROWN, SOLID = 1.4, 1.5
"""The same where no reward rises any more: on the bundled generator, what learned well stayed below 1.2."""
GROWTH = 1.1
"""Times itself, in FEW iterations, of a velocity that grows."""
FEW, LATELY = 5, 40
ERRORS = 1.0
"""Standard errors by which a reward rises still: fewer than elsewhere, since a reward that rises is nothing to warn of."""
FEWEST = 3
GUARD = 10.0
"""The bundled generator's velocities stayed below 1 with it, and ran away without, in the same run."""


def velocities_grow(table: Table) -> Iterator[Finding]:
    """The velocity is far larger than it was; or it is larger, still grows, and no reward rises any more."""
    points = table.recent(names.VELOCITY_SIZE)
    now = [value for _, value in points[-FEW:]]
    if len(now) < FEWEST:
        return
    size = median(now)
    if min(now[-FEWEST:]) >= FAR:
        told = f"velocities have grown to {size:.3g} times those of the model that training started from"
    elif len(table.trained) >= LEAST and len(points) == RECENT and size >= GROWN and not _rises(table):
        before = median(value for _, value in points[:-FEW])
        if size < GROWTH * before:
            return
        told = (
            f"velocities are {size:.3g} times those of the model that training started from, up from {before:.3g} {FEW} "
            "iterations before, and no reward rises any more"
        )
    else:
        return
    change, keys = _ways(table)
    yield Finding("velocities-grow", 85, told, change, keys=keys, evidence={names.VELOCITY_SIZE: size}, solid=size >= SOLID)


def _rises(table: Table) -> bool:
    moves = (halves(table.column(f"reward/{label}/mean")[-LATELY:]) for label in table.labels())
    return any(move.errors > ERRORS for move in moves if move)


def _ways(table: Table) -> tuple[str, dict[str, Any]]:
    algorithm = table.key("algorithm")
    if not isinstance(algorithm, Mapping) or "norm_guard" not in algorithm:
        holds = isinstance(algorithm, Mapping) and "kl" in algorithm
        return (hold_closer(table), {}) if holds else scaled_rate(table, 1 / 3)
    guard = table.number("algorithm.norm_guard") or 0.0
    new = GUARD if guard < GUARD else 10 * guard
    return f"set algorithm.norm_guard to {new:g} (it is {guard:g})", {"algorithm.norm_guard": new}
