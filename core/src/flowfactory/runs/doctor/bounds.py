"""The trust region and what adapts: a first ratio that is not 1, a coefficient at its bound, a reference that follows."""

from __future__ import annotations

from collections.abc import Iterator

from flowfactory.runs.doctor import names
from flowfactory.runs.doctor.finding import Finding
from flowfactory.runs.doctor.settings import optimizer_steps
from flowfactory.runs.doctor.table import LEAST, RECENT, Table, mean

CLIPPED, MANY_CLIPPED = 0.01, 0.1
"""Shares of fresh samples that are clipped: of which more is told, and of which a run warns."""


def first_ratio(table: Table) -> Iterator[Finding]:
    """Samples are clipped in an iteration's first update, when nothing has been learned from them: only rounding clips them."""
    if table.key("sampling.ema") is not None:  # then the ratio is that to an average
        return
    firsts = [f"{name}{names.FIRST_UPDATE}" for name in names.CLIPPED]
    name = table.first_known([*firsts, *names.CLIPPED] if optimizer_steps(table) == 1 else firsts)
    if name is None or (share := mean(table.recent(name))) < CLIPPED:
        return
    earlier = table.column(name)[:RECENT]
    what = f"{share:.1%} of the losses are clipped in the first update of an iteration ({name}), where the ratio should be 1"
    if len(table.trained) >= 2 * RECENT and mean(earlier) < share / 2:
        what += f"; it was {mean(earlier):.1%} in the first {RECENT} iterations"
    if table.key("training.recompute_log_prob"):
        keys: dict[str, object] = {"training.precision": "float32"}
        change = "set training.precision to float32"
    else:
        change, keys = "set training.recompute_log_prob to true", {"training.recompute_log_prob": True}
    solid = share >= MANY_CLIPPED and len(table.recent(name)) >= RECENT
    yield Finding("first-ratio", 65, what, change, keys=keys, evidence={name: share}, solid=solid)


def at_a_bound(table: Table) -> Iterator[Finding]:
    """What a controller sets has moved, and now stands still."""
    for name in names.COEFFICIENTS:
        points = table.column(name)
        if len(points) < LEAST:
            continue
        last = points[-1][1]
        still = all(value == last for _, value in points[-RECENT:])
        bounds = {max(value for _, value in points): "upper", min(value for _, value in points): "lower"}
        if not still or len(bounds) == 1 or last not in bounds:
            continue
        since = next(iteration for iteration, value in reversed(points) if value != last) + 1
        what = f"{name} has stood at {last:.4g} since iteration {since}, its {bounds[last]} bound, and steers no more"
        change = (
            "lower training.optimizer.lr, or allow a larger divergence"
            if bounds[last] == "upper"
            else "raise training.optimizer.lr, or ask for a smaller divergence"
        )
        yield Finding("at-a-bound", 35, what, change, name, evidence={name: last, "since": since})


def reference_follows(table: Table) -> Iterator[Finding]:
    """The reference of a KL was taken anew in every iteration: it is where the policy is, and holds it nowhere."""
    points = table.recent(names.KL_REFRESHED)
    if len(table.trained) < LEAST or len(points) < RECENT or not all(count for _, count in points):
        return
    what = f"the reference of the KL was taken anew in each of the last {len(points)} iterations, and holds the policy nowhere"
    change = "raise algorithm.kl.refresh.above and every, or leave refresh out"
    yield Finding("reference-that-follows", 34, what, change, evidence={names.KL_REFRESHED: mean(points)}, solid=True)
