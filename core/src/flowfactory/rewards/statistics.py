"""What the scores of several rewards tell: figures of an iteration, and warnings that they are reason for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from flowfactory.rl.groups import center, group_means, group_std


def reward_metrics(rewards: Mapping[str, Tensor], contributions: Mapping[str, Tensor], groups: Tensor) -> dict[str, float]:
    """The metrics of an iteration's rewards {label: [B]}, each over the samples that it applies to.

    ``reward/<label>/mean`` and ``/std``, ``reward/<label>/group_std`` the standard deviation of the groups' means,
    ``reward/<label>/flat`` the share of groups within which it does not differ,
    ``advantage/<label>/share`` the share of the advantage that it supplies, and where there are several
    ``correlation/<a>/<b>``, Pearson's of what two rewards differ by within the groups that both apply to.
    """
    found = {}
    known = {label: reward.isfinite() for label, reward in rewards.items()}
    for label, reward in rewards.items():
        own, where = reward[known[label]], groups[known[label]]
        if len(own):
            found[f"reward/{label}/mean"] = float(own.double().mean())
            found[f"reward/{label}/std"] = float(own.double().std(correction=0))
            found[f"reward/{label}/group_std"] = float(group_means(own.double(), where)[0].std(correction=0))
            found[f"reward/{label}/flat"] = group_share(group_std(own, where) == 0, where)
    found |= {f"advantage/{label}/share": share for label, share in advantage_shares(contributions).items()}
    for a, b in combinations(rewards, 2):
        both = known[a] & known[b]
        if (correlation := _correlation(rewards[a][both], rewards[b][both], groups[both])) is not None:
            found[f"correlation/{a}/{b}"] = correlation
    return found


def source_metrics(rewards: Mapping[str, Tensor], sources: Sequence[str], held_out: bool = False) -> dict[str, float]:
    """The mean of each of ``rewards`` {label: [B]} over the samples of each of ``sources`` [B]; of those without a name none.

    ``source/<source>/<label>/mean``, and of what is ``held_out`` ``source/<source>/eval/<label>/mean``.
    """
    found = {}
    for name in dict.fromkeys(filter(None, sources)):
        mine = torch.tensor([source == name for source in sources])
        for label, reward in rewards.items():
            own = reward[mine.to(reward.device) & reward.isfinite()]
            if len(own):
                found[f"source/{name}/{'eval/' if held_out else ''}{label}/mean"] = float(own.double().mean())
    return found


def advantage_shares(contributions: Mapping[str, Tensor]) -> dict[str, float]:
    """{label: share of the advantage's variance that its contribution [B] explains}; they add up to 1.

    The covariance of a contribution with the sum of all, by the variance of the sum; below 0 where it works against the
    others. Empty where there is no advantage at all.
    """
    if not contributions:
        return {}
    total = torch.stack(list(contributions.values())).sum(0)
    power = float(total.square().sum())
    return {label: float((part * total).sum()) / power for label, part in contributions.items()} if power else {}


def group_share(flags: Tensor, groups: Tensor) -> float:
    """The share of groups [B] whose samples' flag [B] is set, which it is for all of a group or for none."""
    return len(torch.unique(groups[flags])) / len(torch.unique(groups))


def _correlation(a: Tensor, b: Tensor, groups: Tensor) -> float | None:
    if not len(groups):
        return None
    x, y = (torch.where(group_std(value, groups) > 0, center(value, groups), 0.0) for value in (a, b))
    norm = math.sqrt(float(x.square().sum()) * float(y.square().sum()))
    return float((x * y).sum()) / norm if norm else None
