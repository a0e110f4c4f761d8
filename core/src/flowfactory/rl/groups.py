"""Means, spreads, sums and maxima within groups of samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def center(rewards: Tensor, groups: Tensor) -> Tensor:
    """Rewards [B] less the mean of their group, float64. ``groups`` [B], int64, any ids."""
    mean, index = _group_mean(rewards.double(), groups)
    return rewards.double() - mean[index]


def group_std(rewards: Tensor, groups: Tensor) -> Tensor:
    """Population standard deviation [B] of each sample's group, float64; exactly zero where a group is constant."""
    deviation = center(rewards, groups)
    variance, index = _group_mean(deviation.square(), groups)
    largest = torch.zeros_like(variance).scatter_reduce_(0, index, rewards.double().abs(), "amax")
    std = variance.sqrt()
    # a constant group's mean may be an ulp off, which division by the spread would blow up to one
    return torch.where(std <= 1e-7 * largest, 0.0, std)[index]


def group_sum(values: Tensor, groups: Tensor) -> Tensor:
    """The sum over each sample's group [B]. ``groups`` [B], int64, any ids."""
    _, index = torch.unique(groups.to(values.device), return_inverse=True)
    return torch.zeros(int(index.max()) + 1, dtype=values.dtype, device=values.device).index_add_(0, index, values)[index]


def group_max(values: Tensor, groups: Tensor) -> Tensor:
    """The largest of each sample's group [B]. ``groups`` [B], int64, any ids."""
    _, index = torch.unique(groups.to(values.device), return_inverse=True)
    largest = torch.full((int(index.max()) + 1,), -torch.inf, dtype=values.dtype, device=values.device)
    return largest.scatter_reduce(0, index, values, "amax")[index]


def _group_mean(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each group [G], and which of them is each sample's [B]."""
    _, index = torch.unique(groups, return_inverse=True)
    count = torch.bincount(index)
    total = torch.zeros(len(count), dtype=values.dtype, device=values.device).index_add_(0, index, values)
    return total / count, index


def rows_by_group(rows: Sequence[int], groups: Tensor) -> list[list[int]]:
    """``rows`` by their group, in the order in which the groups come; ``groups`` [B] are those of all samples."""
    found: dict[int, list[int]] = {}
    for row in rows:
        found.setdefault(int(groups[row]), []).append(row)
    return list(found.values())
