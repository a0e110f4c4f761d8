"""The reward does not rise: which of the reasons it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flowfactory.runs.doctor import names
from flowfactory.runs.doctor.collapse import NO_SPREAD, lost_spread
from flowfactory.runs.doctor.finding import Finding
from flowfactory.runs.doctor.settings import clip_range, learning_rate, optimizer_steps, scaled_rate
from flowfactory.runs.doctor.table import RECENT, Move, Table, first_to_last, mean

ITERATIONS, SOLID_ITERATIONS = 20, 40
"""Before which no reward is called flat, and before which no run warns of it."""
ERRORS = 2.0
"""It is where its first and last quarter differ by less than these standard errors."""
HARDLY_ANY = 0.75
"""Share of groups without spread, of which a run warns."""
LEFT_OF_SPREAD = 0.5
"""Of what it was at the beginning, of a reward that is nearly used up."""
SMALL_UPDATE = 1e-6
SMALL_DEVIATION = 0.01
"""Part of the clip range that the ratio uses at most where the policy hardly moves."""
MOSTLY, NEARLY_NONE = 0.4, 1e-4
"""Of the losses: those on the side where the ratio may move on are never cut, so that large steps cut half of all and more."""
FEW_GROUPS, SMALL_GROUP, USUAL = 8, 4, 16
FEW_SAMPLES = 0.5
"""Share of the samples that as many of equal ratios would be: of an iteration's two updates, the first has all of them, and one
of a policy that went far has none."""


def flat(table: Table) -> Iterator[Finding]:
    """No reward that is learned from is higher at the end than at the beginning: the reasons that figures or keys show."""
    moves = {label: move for label in table.labels() if (move := flat_reward(table, label))}
    if not moves or len(moves) < len(table.labels()):
        return
    told = ", ".join(f"{label!r} {move.before}, {move.after}" for label, move in list(moves.items())[:3])
    told = f"the reward is flat: {told}"
    found = [finding for cause in CAUSES for finding in cause(table, told)]
    yield from found
    if not found and not [*no_spread(table)]:
        change, keys = scaled_rate(table, 3)
        evidence = {f"reward/{label}/change": move.difference for label, move in moves.items()}
        yield Finding("reward-flat", 20, f"{told}, and nothing else is seen to be wrong", change, keys=keys, evidence=evidence)


def flat_reward(table: Table, label: str) -> Move | None:
    """From the first to the last quarter of a reward that moved no further than its noise; None: it did, or it is early."""
    points = table.column(f"reward/{label}/mean")
    move = first_to_last(points) if len(points) >= ITERATIONS else None
    return move if move and abs(move.errors) < ERRORS else None


def no_spread(table: Table) -> Iterator[Finding]:
    """Groups whose members score alike, which teach nothing; told apart from a reward that is nearly perfect everywhere."""
    share, label = _without_spread(table)
    if not label or share < NO_SPREAD or len(table.trained) < RECENT:
        return
    evidence = {"groups_without_spread": share}
    told = f"in {share:.0%} of the groups of the last {RECENT} iterations the rewards do not differ"
    if saturated := _saturation(table, label):
        change = "take harder prompts, or a reward that tells good pictures apart, or stop here: training.early_stop"
        evidence |= {"std_before": saturated.before.mean, "std_after": saturated.after.mean}
        spread = f"the spread of {label!r} went from {saturated.before} to {saturated.after} while its mean rose"
        yield Finding("reward-saturated", 40, f"{told}: {spread}", change, label, {}, evidence)
    elif label not in table.rising() and not lost_spread(table, label):  # of which else a fall tells
        size = table.count("sampling.group_size", 0)
        keys = {"sampling.group_size": 2 * size} if size else {}
        more = f"set sampling.group_size to {2 * size} (it is {size})" if size else "raise sampling.group_size"
        change = f"{more}, or give partial credit: a reward that is right or wrong alone tells few pictures apart"
        what, solid = f"{told}, so they teach nothing", share >= HARDLY_ANY
        yield Finding("no-spread-in-groups", 60 + 40 * share, what, change, label, keys, evidence, solid)


def _clipped(table: Table, told: str) -> Iterator[Finding]:
    name = table.first_known(names.CLIPPED)
    if name is None:
        return
    share = mean(table.recent(name))
    if share >= MOSTLY:
        change, keys = scaled_rate(table, 1 / 3)
        change += ", raise algorithm.clip_range, or lower training.updates"
        what = f"{told}, and {share:.0%} of the losses of the last {RECENT} iterations are clipped ({name}), and train nothing"
        solid = len(table.trained) >= SOLID_ITERATIONS
        yield Finding("nearly-all-clipped", 80, what, change, keys=keys, evidence={name: share}, solid=solid)
    elif share <= NEARLY_NONE and optimizer_steps(table) > 1 and not [*_small_updates(table, told), *_few_samples(table, told)]:
        change, keys = scaled_rate(table, 3)
        what = f"{told}, and no loss is clipped ({name} {share:.2g}): there is room for larger steps"
        yield Finding("nothing-clipped", 50, what, change, keys=keys, evidence={name: share})


def _small_updates(table: Table, told: str) -> Iterator[Finding]:
    change, keys = scaled_rate(table, 10)
    rate, now = learning_rate(table), table.recent(names.RATE)
    if rate and now and now[-1][1] < rate / 10 and table.count("training.warmup", 0):
        change = f"lower training.warmup: the learning rate is {now[-1][1]:.3g} yet, of {rate:g}"
        keys = {}
    if (name := table.first_known(names.UPDATE_SIZE)) and (size := mean(table.recent(name))) < SMALL_UPDATE:
        what = f"{told}, and an iteration moves the weights by {size:.2g} of their norm"
        yield Finding("updates-too-small", 75, what, change, keys=keys, evidence={name: size})
        return
    bound = clip_range(table)
    moved = table.recent(names.RATIO_DEVIATION)
    if bound and moved and optimizer_steps(table) > 1 and (most := max(value for _, value in moved)) < SMALL_DEVIATION * bound:
        what = f"{told}, and the ratio moves from 1 by {most:.2g} at most, of a clip range of {bound:g}"
        yield Finding("updates-too-small", 75, what, change, keys=keys, evidence={names.RATIO_DEVIATION: most})


def _few_groups(table: Table, told: str) -> Iterator[Finding]:
    groups, size = table.count("sampling.groups", 0), table.count("sampling.group_size", 0)
    if 0 < groups < FEW_GROUPS:
        what = f"{told}, and an iteration learns from {groups} prompts, which hardly agree on a direction"
        change = f"set sampling.groups to {USUAL} or more (it is {groups})"
        yield Finding("few-groups", 55, what, change, keys={"sampling.groups": USUAL}, evidence={"sampling.groups": groups})
    if 0 < size <= SMALL_GROUP:
        what = f"{told}, and a picture is compared with {size - 1} others alone, whose mean and spread are noise"
        change = f"set sampling.group_size to 8 or more (it is {size})"
        yield Finding("small-groups", 58, what, change, keys={"sampling.group_size": 8}, evidence={"sampling.group_size": size})


def _few_samples(table: Table, told: str) -> Iterator[Finding]:
    name = table.first_known(names.EFFECTIVE_SAMPLES)
    if name and (share := mean(table.recent(name))) <= FEW_SAMPLES:
        what = f"{told}, and the ratios differ so much that {share:.0%} of the samples would count for as much ({name})"
        change, keys = scaled_rate(table, 1 / 3)
        change += ", or lower training.updates or training.epochs"
        yield Finding("few-effective-samples", 70, what, change, keys=keys, evidence={name: share})


CAUSES: tuple[Callable[[Table, str], Iterator[Finding]], ...] = (_small_updates, _clipped, _few_groups, _few_samples)


def _without_spread(table: Table) -> tuple[float, str]:
    """The share of groups without spread of late, and the reward with the least of them."""
    shares = {label: mean(points) for label in table.labels() if (points := table.recent(f"reward/{label}/flat"))}
    if not shares:
        return 0.0, ""
    label = min(shares, key=shares.__getitem__)
    name = table.first_known(names.FLAT_GROUPS)
    return (mean(table.recent(name)) if name else shares[label]), label


def _saturation(table: Table, label: str) -> Move | None:
    """How the spread of a reward went down while its mean rose; None where it did not."""
    level, spread = first_to_last(table.column(f"reward/{label}/mean")), first_to_last(table.column(f"reward/{label}/std"))
    if level is None or spread is None or spread.before.mean == 0:
        return None
    fell = spread.after.mean < LEFT_OF_SPREAD * spread.before.mean
    return spread if fell and level.errors > ERRORS else None
