"""Warnings that the figures of a run are reason for: one reward that supplies nearly all, and signs of reward hacking."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch

NEARLY_ALL = 0.95
MOST = 20
"""Rewards, and held-out ones, that are compared with one another."""


def dominant_reward(metrics: Mapping[str, float]) -> str | None:
    """The label that supplies nearly all of an iteration's advantage though others are trained on too.

    Others that differ within no group of the iteration, which may be chance, say nothing about their scale or weight.
    """
    shares = {name.split("/")[1]: share for name, share in metrics.items() if name.startswith("advantage/")}
    supplied = {label: share for label, share in shares.items() if metrics.get(f"reward/{label}/flat", 1.0) < 1}
    if len(supplied) < 2:
        return None
    label = max(supplied, key=supplied.__getitem__)
    return label if supplied[label] >= NEARLY_ALL else None


def dominance_warning(label: str, metrics: Mapping[str, float], aggregate: str) -> str:
    """The sentence about a label that :func:`dominant_reward` found where ``advantages.aggregate`` is ``aggregate``."""
    share = min(1.0, metrics[f"advantage/{label}/share"])  # more where others work against it
    if aggregate == "gdpo":
        advice = "change the weights, or look at how many of their groups are flat"
    else:
        advice = "advantages: {aggregate: gdpo} gives each its own scale, or change the weights"
    return f"reward {label!r} supplies {share:.0%} of the advantage, and the others hardly train; {advice}"


def hacking_warnings(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for every held-out reward that fell while a training reward rose: what reward hacking looks like.

    It fell where its last mean is below its best by more than two standard errors of their difference. A training reward rose
    meanwhile where the mean of the last quarter of the iterations since is above that of the first by as much.
    """
    names = dict.fromkeys(chain.from_iterable(records))
    rewards = [name for name in names if _is(name, "reward", "mean")][:MOST]
    for name in [name for name in names if _is(name, "eval", "mean")][:MOST]:
        label = name.split("/")[1]
        points = [record for record in records if name in record]
        best = max(points, key=lambda record: float(record[name]))
        last = points[-1]
        if last[name] >= best[name] - 2 * _error(best, last, label):
            continue
        since = [record for record in records if best["iteration"] <= record["iteration"] <= last["iteration"]]
        for rising, (before, after) in _rising_rewards(since, rewards):
            yield (
                f"{rising} rose from {before:.4g} to {after:.4g} in training while held-out {label} fell from {best[name]:.4g} "
                f"(after iteration {best['iteration']}) to {last[name]:.4g} (after {last['iteration']}): this is what reward "
                f"hacking looks like; look at the pictures, and at the checkpoint of iteration {best['iteration']}"
            )


def _is(key: str, kind: str, figure: str) -> bool:
    parts = key.split("/")
    return len(parts) == 3 and parts[0] == kind and parts[2] == figure


def _error(one: Mapping[str, Any], other: Mapping[str, Any], label: str) -> float:
    """The standard error of the difference of two evaluations' means, as if their samples had nothing in common."""
    return math.sqrt(
        sum(record.get(f"eval/{label}/std", 0.0) ** 2 / max(1, record.get("eval/samples", 1)) for record in (one, other))
    )


def _rising_rewards(records: Sequence[Mapping[str, Any]], rewards: Sequence[str]) -> Iterator[tuple[str, tuple[float, float]]]:
    for name in rewards:
        label = name.split("/")[1]
        values = torch.tensor([record[name] for record in records if name in record], dtype=torch.float64)
        if len(values) < 2 or not any(f"advantage/{label}/share" in record for record in records):
            continue  # what is only watched is no reason to suspect
        count = max(1, len(values) // 4)
        first, last = values[:count], values[-count:]
        noise = math.sqrt(float(first.var(correction=0) + last.var(correction=0)) / count)
        if float(last.mean() - first.mean()) > 2 * noise:
            yield label, (float(first.mean()), float(last.mean()))
