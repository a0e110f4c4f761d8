"""Advantages, the clipped surrogate and divergences: pure functions in the papers' notation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

EPSILON = 1e-8


def centred(rewards: Tensor, groups: Tensor) -> Tensor:
    """Rewards [B] less the mean of their group, float64. ``groups`` [B], int64, any ids."""
    mean, index = _group_mean(rewards.double(), groups)
    return rewards.double() - mean[index]


def group_std(rewards: Tensor, groups: Tensor) -> Tensor:
    """Population standard deviation [B] of each sample's group, float64; exactly zero where a group is constant."""
    deviation = centred(rewards, groups)
    variance, index = _group_mean(deviation.square(), groups)
    largest = torch.zeros_like(variance).scatter_reduce_(0, index, rewards.double().abs(), "amax")
    std = variance.sqrt()
    # a constant group's mean may be an ulp off, which division by the spread would blow up to one
    return torch.where(std <= 1e-7 * largest, 0.0, std)[index]


def normalised(rewards: Tensor, groups: Tensor, spread: Literal["group", "global"] = "group") -> Tensor:
    """Centred rewards [B] divided by the standard deviation of the group, or of all that are centred; float64.

    A group whose rewards are all equal gets zeros. GRPO, arXiv:2402.03300.
    """
    return centred(rewards, groups) * _scale(rewards, groups, spread)


def _scale(rewards: Tensor, groups: Tensor, spread: Literal["group", "global"]) -> Tensor:
    """What normalising multiplies centred rewards [B] by: one over their spread, and zero in a group that is constant."""
    own = group_std(rewards, groups)
    std = own if spread == "group" else torch.where(own > 0, centred(rewards, groups), 0.0).square().mean().sqrt()
    return torch.where(own > 0, 1 / (std + EPSILON), 0.0)


def contributions(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    aggregate: Literal["sum", "gdpo"] = "sum",
    spread: Literal["group", "global"] = "group",
) -> dict[str, Tensor]:
    """{label: [B]}, float64: what each reward of a weight other than zero adds to the advantage, with mean zero in each group.

    ``sum`` weighs and adds the rewards, then normalises in the group. ``gdpo`` (arXiv:2601.05242) normalises each reward
    in its group, weighs and adds, then whitens over the batch, so that no reward is drowned by another's scale. Rewards are
    NaN where they do not apply, which is the same for all of a group: there they add nothing.
    """
    used = {label: weight for label, weight in weights.items() if weight != 0}
    if aggregate == "sum":
        weighted = {label: weight * rewards[label].double().nan_to_num(0.0) for label, weight in used.items()}
        scale = _scale(torch.stack(list(weighted.values())).sum(0), groups, spread)
        return {label: centred(value, groups) * scale for label, value in weighted.items()}
    parts = {}
    for label, weight in used.items():
        known = rewards[label].isfinite()
        parts[label] = torch.zeros(len(groups), dtype=torch.float64)
        parts[label][known] = weight * normalised(rewards[label][known], groups[known], spread)
    std = torch.stack(list(parts.values())).sum(0).std(correction=0)  # their mean is zero already
    return {label: part / (std + EPSILON) for label, part in parts.items()}


def advantages(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    aggregate: Literal["sum", "gdpo"] = "sum",
    spread: Literal["group", "global"] = "group",
    clip: float | None = None,
) -> Tensor:
    """Advantages [B], float32: the sum of the rewards' contributions, of an absolute value of at most ``clip``."""
    total = torch.stack(list(contributions(rewards, weights, groups, aggregate, spread).values())).sum(0)
    return (total if clip is None else total.clamp(-clip, clip)).float()


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Loss [B]: -min(ratio A, clip(ratio, 1 - c, 1 + c) A). PPO, arXiv:1707.06347, eq. 7."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)


def is_clipped(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """[B], 1.0 where the surrogate's gradient is cut: the ratio is past the bound on the side the advantage pushes to."""
    past = torch.where(advantage > 0, ratio > 1 + clip_range, (ratio < 1 - clip_range) & (advantage < 0))
    return past.float()


def velocity_kl(velocity: Tensor, reference: Tensor) -> Tensor:
    """[B]: mean squared difference of two velocities, the KL of the two flows up to a time weighting."""
    return (velocity - reference).square().flatten(1).mean(1)


def mean_kl(mean: Tensor, reference: Tensor, std: Tensor) -> Tensor:
    """[B]: KL of two Gaussian steps of equal std [B, 1...], mean over elements. Flow-GRPO, arXiv:2505.05470, eq. 12."""
    return ((mean - reference).square() / (2 * std.square())).flatten(1).mean(1)


def normalised_log_ratio(mean: Tensor, old_mean: Tensor, next_latents: Tensor, std: Tensor) -> Tensor:
    """[B]: the log-ratio of two Gaussian steps, less its bias and in units of its own spread.

    Mean over elements of (mean - old_mean) (next_latents - old_mean) / std, which at the weights that drew is centred
    at zero whatever the step. GRPO-Guard, arXiv:2510.22319, eq. 8.
    """
    return ((mean - old_mean) * (next_latents.float() - old_mean) / std).flatten(1).mean(1)


def optimality(advantage: Tensor, maximum: float) -> Tensor:
    """[B] in [0, 1]: clamp(A / (2 maximum) + 1/2). DiffusionNFT, arXiv:2509.16117."""
    return (advantage / (2 * maximum) + 0.5).clamp(0, 1)


def squared_error(estimate: Tensor, target: Tensor, scaled: bool = False) -> Tensor:
    """[B]: mean over elements of the squared error, divided by its own detached mean absolute error if ``scaled``."""
    error = (estimate.float() - target).flatten(1)
    mean = error.square().mean(1)
    return mean / error.detach().abs().mean(1).clamp(min=1e-5) if scaled else mean


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
