"""Rewards to advantages: normalised in groups, weighed and added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from flowfactory.errors import RunError
from flowfactory.rl.groups import center, group_max, group_range, group_rounding, group_std, root_mean_square

Spread = Literal["group", "within", "global"]
"""Whose standard deviation divides a centred reward: its group's, that of all centred ones, or that of all raw ones."""


def normalize(rewards: Tensor, groups: Tensor, spread: Spread = "group") -> Tensor:
    """Centred rewards [B] divided by the standard deviation that ``spread`` names; float64.

    A group whose rewards are all equal, as :func:`group_std` sees it, gets zeros. GRPO, arXiv:2402.03300.
    """
    different = _differences(rewards, groups)
    return different / _spread(different, rewards.double(), groups, spread)


def _where_known(rewards: Tensor, groups: Tensor, find: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``find(rewards, groups)`` of the samples that a reward applies to, [B], float64, and zero elsewhere."""
    known = rewards.isfinite()
    found = torch.zeros(len(groups), dtype=torch.float64)
    found[known] = find(rewards[known], groups[known])
    return found


def _differences(rewards: Tensor, groups: Tensor) -> Tensor:
    """Centred rewards [B], float64: zero in a group that is constant, and where the reward does not apply."""
    return _where_known(rewards, groups, lambda own, where: torch.where(group_std(own, where) == 0, 0.0, center(own, where)))


def _spread(different: Tensor, raw: Tensor, groups: Tensor, spread: Spread) -> Tensor:
    """What centred rewards ``different`` [B] are divided by, of ``raw`` [B] for global ones; 1 where that is zero."""
    whole = torch.zeros_like(groups)
    values = center(raw, whole) if spread == "global" else different
    std = root_mean_square(values, groups if spread == "group" else whole)
    return torch.where(std > 0, std, 1.0)


def reward_contributions(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    aggregate: Literal["sum", "gdpo"] = "sum",
    spread: Spread = "group",
    min_range: float = 0.0,
) -> dict[str, Tensor]:
    """{label: [B]}, float64: what each reward of a weight other than zero adds to the advantage, with mean zero in each group.

    ``sum`` weighs and adds the rewards, then normalises in the group. ``gdpo`` (arXiv:2601.05242) normalises each reward
    in its group, weighs and adds, then whitens over the batch, so that no reward is drowned by another's scale. Rewards are
    NaN where they do not apply, which is the same for all of a group: there they add nothing, and count as their mean in what
    ``global`` divides by. A group within which the weighted sum of the rewards differs by less than ``min_range`` gets zeros.
    RunError: a reward's scores are so large that its weight makes them infinite.
    """
    # centred first: a large constant beside them would take the small ones' digits
    one_by_one, alone = aggregate == "gdpo", partial(normalize, spread=spread)
    parts, sums, raw = {}, dict[str, Tensor](), torch.zeros(len(groups), dtype=torch.float64)
    rounding = torch.zeros(len(groups), dtype=torch.float64)
    for label, weight in weights.items():
        if weight != 0:
            reward = rewards[label]
            sums[label] = weight * _differences(reward, groups)
            parts[label] = weight * _where_known(reward, groups, alone) if one_by_one else sums[label]
            raw = raw + weight * _where_known(reward, torch.zeros_like(groups), center)
            rounding = rounding + _rounding_of(reward, weight, parts[label], sums[label], groups)
            if not (parts[label].isfinite().all() and sums[label].isfinite().all()):
                raise RunError(f"reward {label!r}: its scores times its weight are too large to add up; scale them down")
    total = sum_of(parts)
    # rewards that cancel leave roundings, which division by their spread would blow up to one
    differs = group_range(total, groups) > rounding
    differs &= group_range(sum_of(sums), groups) >= min_range
    scale = _spread(torch.where(differs, total, 0.0), raw, groups, "within" if one_by_one else spread)
    return {label: torch.where(differs, part / scale, 0.0) for label, part in parts.items()}


def _rounding_of(reward: Tensor, weight: float, part: Tensor, weighed: Tensor, groups: Tensor) -> Tensor:
    """What the roundings of a reward's scores come to in its ``part`` [B], which is ``weighed`` [B] by what divides that; [B].

    Zero where the reward is constant in the group: it has added nothing.
    """
    spread, divided = (group_max(values.abs(), groups) for values in (weighed, part))
    scores = abs(weight) * _where_known(reward, groups, group_rounding)
    return torch.where(spread > 0, scores * (divided / spread), 0.0)


def clipped_sum(contributions: Mapping[str, Tensor], clip: float | None = None) -> Tensor:
    """The sum [B] of contributions {label: [B]} as an advantage, float32, of an absolute value of at most ``clip``."""
    total = sum_of(contributions)
    return (total if clip is None else total.clamp(-clip, clip)).float()


def weighted_sum(
    rewards: Mapping[str, Tensor], weights: Mapping[str, float], aggregate: Literal["sum", "gdpo"] = "sum"
) -> Tensor:
    """[B], float64: the sum of the rewards times their weights, each less its mean over the batch, whatever the groups.

    Under ``gdpo`` each is also divided by its standard deviation. Where one does not apply it counts as its mean. NaN where
    none of a weight other than zero does.
    """
    find = normalize if aggregate == "gdpo" else center
    learned = {label: rewards[label] for label, weight in weights.items() if weight != 0}
    whole = torch.zeros(len(next(iter(learned.values()))), dtype=torch.int64)
    parts = [weights[label] * _where_known(own, whole, find) for label, own in learned.items()]
    anywhere = torch.stack([own.isfinite() for own in learned.values()]).any(0)
    return torch.where(anywhere, torch.stack(parts).sum(0), torch.nan)


def sum_of(contributions: Mapping[str, Tensor]) -> Tensor:
    """The sum [B] of contributions {label: [B]}: the advantage before it is clipped."""
    return torch.stack(list(contributions.values())).sum(0)


def advantages(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    aggregate: Literal["sum", "gdpo"] = "sum",
    spread: Spread = "group",
    clip: float | None = None,
    min_range: float = 0.0,
) -> Tensor:
    """Advantages [B], float32: the sum of the rewards' contributions, of an absolute value of at most ``clip``."""
    return clipped_sum(reward_contributions(rewards, weights, groups, aggregate, spread, min_range), clip)
