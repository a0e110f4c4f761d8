"""The reward fell: the run unlearns, and why that is likely."""

from __future__ import annotations

from collections.abc import Iterator

from flowfactory.runs.doctor.finding import Finding, Rule
from flowfactory.runs.doctor.settings import guidance, is_decoupled, learning_rate, scaled_rate, trained_guidance
from flowfactory.runs.doctor.table import Move, Table, best_to_last, first_to_last, mean

ERRORS, SHARE = 4.0, 0.1
"""A reward fell where its last quarter is below its best by these standard errors, and this part of the samples' spread."""
ITERATIONS = 20
"""Before which it is too early to say that a reward does not rise."""
SOLID_ERRORS, SOLID_SHARE, SOLID_ITERATIONS = 6.0, 0.2, 24


def fell(table: Table) -> Iterator[Finding]:
    """For each reward that fell, what is most likely the cause, and what else helps.

    Under guidance, which keeps many runs from learning, one that has not risen is enough. Where another reward rose instead,
    nothing is unlearned.
    """
    for label in table.labels() if not table.rising() else ():
        if move := fallen_reward(table, label):
            causes, how = [*_guided(table), *_rate(table), *_no_kl(table)], "fell"
        elif move := _not_risen(table, label):
            causes, how = [*_guided(table)], "has not risen"
        else:
            continue
        what = f"reward {label!r} {how}: {move.before}, {move.after}"
        evidence = {"before": move.before.mean, "after": move.after.mean, "standard_errors": move.errors}
        for place, (rule, weight, why, change, keys) in enumerate(causes):
            solid = not place and _is_solid(table, label, move)
            yield Finding(rule, weight, f"{what}{why}", change, label, keys, evidence, solid)


def fallen_reward(table: Table, label: str) -> Move | None:
    """From the best quarter of a reward to the last one, where it fell."""
    move = best_to_last(table.column(f"reward/{label}/mean"))
    if move is None or move.errors > -ERRORS or -move.difference < SHARE * _spread(table, label):
        return None
    return move


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


def _rate(table: Table) -> Iterator[Cause]:
    change, keys = scaled_rate(table, 1 / 3)
    rate = learning_rate(table)
    yield "rate-too-high", 70, f", at a learning rate of {rate:g}" if rate else "", change, keys


def _no_kl(table: Table) -> Iterator[Cause]:
    if table.number("algorithm.kl") == 0:
        why = ", and nothing holds the policy to the model that training started from (algorithm.kl 0)"
        yield "no-kl", 60, why, "set algorithm.kl above 0; the page of the algorithm says what its authors use", {}
