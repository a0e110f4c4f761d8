"""What a run learns from, and what it waits for: a reward that dominates, prompts that are used up, a slow judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flowfactory.runs.doctor import names
from flowfactory.runs.doctor.finding import Finding
from flowfactory.runs.doctor.hacked import fall_from_best
from flowfactory.runs.doctor.table import RECENT, RISEN, Table, halves, mean

NEARLY_ALL = 0.95
OFTEN = 3
"""Of the last iterations, in which one reward supplies nearly all, so that it is no chance."""
PASSES, MANY_PASSES = 20, 100
"""Over the prompts, with a held-out score that says what comes of it and without."""
EVALUATIONS = 4
HALF, MOST, LONG = 0.5, 0.7, 5.0
"""Shares of the seconds that rewards take: of which more is told, and of which a run warns if they are as many seconds."""


def dominant_reward(metrics: Mapping[str, float]) -> str | None:
    """The label that supplies nearly all of an iteration's advantage though others are trained on too.

    Others that differ within no group of the iteration, which may be chance, say nothing about their scale or weight.
    """
    shares = {name.split("/")[1]: share for name, share in metrics.items() if name.startswith(names.ADVANTAGE)}
    supplied = {label: share for label, share in shares.items() if metrics.get(f"reward/{label}/flat", 1.0) < 1}
    if len(supplied) < 2:
        return None
    label = max(supplied, key=supplied.__getitem__)
    return label if supplied[label] >= NEARLY_ALL else None


def describe_dominance(label: str, share: float, aggregate: str) -> tuple[str, str]:
    """What is wrong where a reward supplies ``share`` of the advantage, and what to do, by ``advantages.aggregate``."""
    what = f"reward {label!r} supplies {min(1.0, share):.0%} of the advantage, and the others hardly train"  # or more
    if aggregate == "gdpo":
        return what, "change the weights, or look at how many of their groups are flat"
    return what, "advantages: {aggregate: gdpo} gives each its own scale, or change the weights"


def one_dominates(table: Table) -> Iterator[Finding]:
    """One reward supplies nearly all of the advantage, and the others hardly train."""
    found = [label for record in table.trained[-RECENT:] if (label := dominant_reward(record))]
    for label in dict.fromkeys(found):
        if found.count(label) < OFTEN:
            continue
        shares = table.recent(f"advantage/{label}/share")
        share = mean(shares)
        what, change = describe_dominance(label, share, str(table.key("advantages.aggregate")))
        keys = {} if table.key("advantages.aggregate") == "gdpo" else {"advantages.aggregate": "gdpo"}
        evidence = {f"advantage/{label}/share": share, "iterations": float(found.count(label))}
        yield Finding("one-reward-dominates", 45, what, change, label, keys, evidence, solid=True)


def prompts_used_up(table: Table) -> Iterator[Finding]:
    """Few prompts were gone through many times: training rises, and what is held out does not."""
    prompts, groups = table.fact("prompts.train"), table.number("sampling.groups")
    if type(prompts) is not int or prompts < 1 or not groups or not table.trained:
        return
    passes = table.trained[-1]["iteration"] * groups / prompts
    if passes < PASSES:
        return
    what = f"the {prompts} prompts were gone through {passes:.0f} times"
    change, evidence = "give prompts.train more prompts, or stop by training.early_stop", {"passes": passes, "prompts": prompts}
    if not table.held_out() and passes >= MANY_PASSES:
        yield Finding("prompts-used-up", 15, f"{what}, and nothing is held out that would tell", change, evidence=evidence)
    for label in table.held_out():
        if told := _describe_held_out(table, label):
            yield Finding("prompts-used-up", 50, f"{what}: {told}", change, label, evidence=evidence)
            return


def _describe_held_out(table: Table, label: str) -> str | None:
    """How a held-out score went another way than training; None where it did not."""
    name = f"eval/{label}/mean"
    evaluated = [record for record in table.records if name in record]
    if len(evaluated) < EVALUATIONS:
        return None
    if (fall := fall_from_best(table, label)) and table.rising():
        best, last, _ = fall
        return (
            f"training rose, and held-out {label} fell from {best[name]:.4g} (after iteration {best['iteration']}) to "
            f"{last[name]:.4g} (after {last['iteration']})"
        )
    half = len(evaluated) // 2
    stalled = max(record[name] for record in evaluated[half:]) <= max(record[name] for record in evaluated[:half])
    if stalled and _rises_after(table, evaluated[half]["iteration"]):
        return f"training rises on, and held-out {label} has had no better score in the second half of the run"
    return None


def _rises_after(table: Table, iteration: int) -> bool:
    columns = (table.column(name) for name in table.reward_names())
    moves = (halves([point for point in points if point[0] >= iteration]) for points in columns)
    return any(move.errors > RISEN for move in moves if move)


def slow_judge(table: Table) -> Iterator[Finding]:
    """Rewards take most of the time."""
    name = f"{names.SECONDS}reward"
    waited = table.recent(name)
    if len(waited) < RECENT:
        return
    recent = table.trained[-RECENT:]
    whole = sum(value for record in recent for key, value in record.items() if key.startswith(names.SECONDS))
    seconds, share = mean(waited), sum(value for _, value in waited) / whole if whole > 0 else 0.0
    if share < HALF:
        return
    what = f"rewards take {share:.0%} of the time, {seconds:.3g} seconds of an iteration"
    change = "set concurrent or workers of the reward, so that it judges while the next pictures are drawn"
    evidence = {name: seconds, "share": share}
    yield Finding("slow-judge", 25, what, change, evidence=evidence, solid=share >= MOST and seconds >= LONG)
