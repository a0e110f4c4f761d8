"""The reward fell: the run unlearns, and why that is likely."""

from __future__ import annotations

from collections.abc import Iterator

from flowfactory.runs.doctor.collapse import has_risen_since, lost_spread, sudden_fall
from flowfactory.runs.doctor.finding import Finding, Rule
from flowfactory.runs.doctor.settings import guidance, is_decoupled, learning_rate, scaled_rate, trained_guidance
from flowfactory.runs.doctor.table import RECENT, RISEN, Move, Table, best_to_last, first_to_last, mean, over_the_same

ERRORS, SHARE = 4.0, 0.1
"""A reward fell where its last quarter is below its best by these standard errors, and this part of the samples' spread."""
ITERATIONS = 20
"""Before which it is too early to say that a reward does not rise."""
SOLID_ERRORS, SOLID_SHARE, SOLID_ITERATIONS = 6.0, 0.2, 24
SOLID_AFTER = 8
"""Iterations after a sudden fall, from which a run warns of it."""
GIVEN_BACK = 0.5
"""Of what a reward had risen: a policy that has learned wanders about what it reached."""


def fell(table: Table) -> Iterator[Finding]:
    """For each reward that fell, what is most likely the cause, and what else helps.

    Under guidance, which keeps many runs from learning, one that has not risen is enough. Where another reward rose instead,
    nothing is unlearned. Where groups lost their spread and no reward is higher, all of it was unlearned before it could fall.
    """
    found = [finding for label in table.labels() for finding in _of(table, label)]
    yield from found or _without_spread(table)


def _of(table: Table, label: str) -> Iterator[Finding]:
    sudden = sudden_fall(table, label)
    if sudden and not _given_up_for_another(table, label, sudden):
        move, how, causes = sudden, "fell at once", [*_guided(table), *_rate(table, sudden=True), *_no_kl(table)]
    elif slow := fallen_reward(table, label):
        move, how, causes = slow, "fell", [*_guided(table), *_rate(table), *_no_kl(table)]
    elif not table.rising() and (level := _not_risen(table, label)):
        move, how, causes = level, "has not risen", [*_guided(table)]
    else:
        return
    what = f"reward {label!r} {how}: {move.before}, {move.after}"
    evidence = {"before": move.before.mean, "after": move.after.mean, "standard_errors": move.errors}
    lasting = move.after.last - move.after.first >= SOLID_AFTER - 1
    strong = lasting if move is sudden else _is_solid(table, label, move)
    for place, (rule, weight, why, change, keys) in enumerate(causes):
        yield Finding(rule, weight, f"{what}{why}", change, label, keys, evidence, solid=not place and strong)


def fallen_reward(table: Table, label: str) -> Move | None:
    """From the best quarter of a reward to the last one, where it fell: by half of what it had risen, if it had."""
    points = table.column(f"reward/{label}/mean")
    move, whole = best_to_last(points), first_to_last(points)
    if move is None or whole is None or move.errors > -ERRORS or -move.difference < SHARE * _spread(table, label):
        return None
    if whole.errors > RISEN and -move.difference < GIVEN_BACK * (move.before.mean - whole.before.mean):
        return None
    return None if _given_up_for_another(table, label, move) else move


def _given_up_for_another(table: Table, label: str, move: Move) -> bool:
    """Whether another reward rose while this one fell."""
    others = (over_the_same(table.column(f"reward/{x}/mean"), move) for x in table.labels() if x != label)
    return any(other.errors > RISEN for other in others if other)


def _without_spread(table: Table) -> Iterator[Finding]:
    found = {label: lost for label in table.labels() if (lost := lost_spread(table, label))}
    if not found or any(has_risen_since(table, label, lost.iteration) for label, lost in found.items()):
        return
    label, lost = next(iter(found.items()))
    change, keys = scaled_rate(table, 1 / 10)
    rate = learning_rate(table)
    what = (
        f"groups lost their spread: up to iteration {lost.iteration} {lost.before:.0%} of them had none, of the last {RECENT} "
        f"iterations {lost.after:.0%}, and reward {label!r} has not risen"
    )
    what += f", at a learning rate of {rate:g}" if rate else ""
    evidence = {"groups_without_spread": lost.after, "groups_without_spread_at_first": lost.before}
    yield Finding("rate-too-high", 92, what, change, label, keys, evidence, solid=True)


def _not_risen(table: Table, label: str) -> Move | None:
    points = table.column(f"reward/{label}/mean")
    move = first_to_last(points) if len(points) >= ITERATIONS else None
    return move if move and move.errors < 1 else None


def _spread(table: Table, label: str) -> float:
    points = table.column(f"reward/{label}/std")
    return mean(points) if points else 0.0


def _is_solid(table: Table, label: str, move: Move) -> bool:
    far = -move.difference >= SOLID_SHARE * _spread(table, label)
    return far and move.errors < -SOLID_ERRORS and len(table.trained) >= SOLID_ITERATIONS


Cause = tuple[Rule, float, str, str, dict[str, object]]


def _guided(table: Table) -> Iterator[Cause]:
    drawn = guidance(table)
    if drawn <= 1:
        return
    if is_decoupled(table) and trained_guidance(table) > 1:
        why = (
            f"; pictures are drawn with guidance {drawn:g}, and the guided velocity is learned as if it were the model's own "
            f"(sampling.guidance {drawn:g}, trained at {trained_guidance(table):g})"
        )
        yield "guided-velocity", 95, why, "set algorithm.guidance to 1", {"algorithm.guidance": 1}
    elif trained_guidance(table) > 1:
        times = 2 * trained_guidance(table) - 1  # its branches enter with g and 1 - g
        change, keys = scaled_rate(table, 1 / times)
        why = f"; under guidance {trained_guidance(table):g} a step of the weights moves what is drawn {times:g} times as far"
        yield "steps-under-guidance", 90, why, change, keys


def _rate(table: Table, sudden: bool = False) -> Iterator[Cause]:
    change, keys = scaled_rate(table, 1 / 10 if sudden else 1 / 3)
    rate = learning_rate(table)
    yield "rate-too-high", 92 if sudden else 70, f", at a learning rate of {rate:g}" if rate else "", change, keys


def _no_kl(table: Table) -> Iterator[Cause]:
    if table.number("algorithm.kl") == 0:
        why = ", and nothing holds the policy to the model that training started from (algorithm.kl 0)"
        yield "no-kl", 60, why, "set algorithm.kl above 0; the page of the algorithm says what its authors use", {}
