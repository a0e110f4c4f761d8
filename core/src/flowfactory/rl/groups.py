"""Means, spreads, sums and maxima within groups of samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDINGS = 4
"""Differences of so many units in the last place are a computation's, and nothing to learn from."""


def center(rewards: Tensor, groups: Tensor) -> Tensor:
    """Rewards [B] less the mean of their group, float64. ``groups`` [B], int64, any ids."""
    mean, index = group_means(rewards.double(), groups)
    return rewards.double() - mean[index]


def group_std(rewards: Tensor, groups: Tensor) -> Tensor:
    """Population standard deviation [B] of each sample's group, float64; exactly zero where the group is constant.

    It is where its rewards lie within :func:`group_rounding` of one another.
    """
    constant = group_range(rewards.double(), groups) <= group_rounding(rewards, groups)
    return torch.where(constant, 0.0, root_mean_square(center(rewards, groups), groups))


def group_rounding(rewards: Tensor, groups: Tensor) -> Tensor:
    """What ``ROUNDINGS`` roundings of the largest of each sample's group come to, [B], float64, in the dtype that they come in.

    One rounding where that has half the bits, of which four are percents of a score.
    """
    numbers = torch.finfo(rewards.dtype if rewards.is_floating_point() else torch.float64)
    return numbers.eps * (ROUNDINGS if numbers.bits > 16 else 1) * group_max(rewards.double().abs(), groups)


def root_mean_square(values: Tensor, groups: Tensor) -> Tensor:
    """The root [B] of the mean square of each sample's group; no square overflows."""
    _, index = torch.unique(groups, return_inverse=True)
    unit = _group_extreme(values.abs(), index, "amax")
    unit = torch.where(unit > 0, unit, 1.0)
    mean, _ = group_means((values / unit[index]).square(), groups)
    return (unit * mean.sqrt())[index]


def group_sum(values: Tensor, groups: Tensor) -> Tensor:
    """The sum over each sample's group [B]. ``groups`` [B], int64, any ids."""
    _, index = torch.unique(groups.to(values.device), return_inverse=True)
    return torch.zeros(int(index.max()) + 1, dtype=values.dtype, device=values.device).index_add_(0, index, values)[index]


def group_max(values: Tensor, groups: Tensor) -> Tensor:
    """The largest of each sample's group [B]. ``groups`` [B], int64, any ids."""
    _, index = torch.unique(groups.to(values.device), return_inverse=True)
    return _group_extreme(values, index, "amax")[index]


def group_range(values: Tensor, groups: Tensor) -> Tensor:
    """The largest less the smallest of each sample's group [B]."""
    return group_max(values, groups) + group_max(-values, groups)


def _group_extreme(values: Tensor, index: Tensor, kind: str) -> Tensor:
    """The largest or the smallest of each group [G], of which ``index`` [B] is each sample's."""
    found = values.new_zeros(len(torch.bincount(index)))
    return found.scatter_reduce(0, index, values, kind, include_self=False)


def group_means(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each group [G], and which of them is each sample's [B]."""
    _, index = torch.unique(groups, return_inverse=True)
    count = torch.bincount(index)
    total = torch.zeros(len(count), dtype=values.dtype, device=values.device).index_add_(0, index, values)
    return total / count, index


def rows_by_group(rows: Sequence[int], groups: Tensor) -> list[list[int]]:
    """``rows`` by their group, in the order in which the groups come; ``groups`` [B] are those of all samples."""
    found: dict[int, list[int]] = {}
    for row, group in zip(rows, groups[torch.tensor(list(rows), dtype=torch.int64)].tolist(), strict=True):
        found.setdefault(group, []).append(row)
    return list(found.values())
