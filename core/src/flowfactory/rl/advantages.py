"""Rewards to advantages: normalised in groups, weighed and added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from flowfactory.rl.groups import center, group_std

EPSILON = 1e-8


def normalize(rewards: Tensor, groups: Tensor, spread: Literal["group", "global"] = "group") -> Tensor:
    """Centred rewards [B] divided by the standard deviation of the group, or of all that are centred; float64.

    A group whose rewards are all equal gets zeros. GRPO, arXiv:2402.03300.
    """
    return center(rewards, groups) * _scale(rewards, groups, spread)


def _scale(rewards: Tensor, groups: Tensor, spread: Literal["group", "global"]) -> Tensor:
    """What normalising multiplies centred rewards [B] by: one over their spread, and zero in a group that is constant."""
    own = group_std(rewards, groups)
    std = own if spread == "group" else torch.where(own > 0, center(rewards, groups), 0.0).square().mean().sqrt()
    return torch.where(own > 0, 1 / (std + EPSILON), 0.0)


def reward_contributions(
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
        return {label: center(value, groups) * scale for label, value in weighted.items()}
    parts = {}
    for label, weight in used.items():
        known = rewards[label].isfinite()
        parts[label] = torch.zeros(len(groups), dtype=torch.float64)
        parts[label][known] = weight * normalize(rewards[label][known], groups[known], spread)
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
    total = torch.stack(list(reward_contributions(rewards, weights, groups, aggregate, spread).values())).sum(0)
    return (total if clip is None else total.clamp(-clip, clip)).float()
