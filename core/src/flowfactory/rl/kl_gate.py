"""Which samples a gated KL is for: those whose trained reward is the most at odds with the others. GARDO, arXiv:2512.24138."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from flowfactory.rl.advantages import weighted_sum


def win_rate(scores: Tensor) -> Tensor:
    """[B], float64: the share of the others that each of ``scores`` [B] beats, of which one that is equal counts half.

    1/2 for a score that is alone. Scores that are NaN, where a reward does not apply, are no others, and have none.
    """
    known = scores.isfinite()
    own, rates = scores[known].double(), torch.full((len(scores),), torch.nan, dtype=torch.float64)
    ordered, others = own.sort().values, len(own) - 1
    beaten, not_above = torch.searchsorted(ordered, own), torch.searchsorted(ordered, own, right=True)
    wins = (beaten + not_above - 1).double() / 2  # beaten, and half of those that are equal and not itself
    rates[known] = wins / others if others else torch.full_like(own, 0.5)
    return rates


def uncertainty(
    rewards: Mapping[str, Tensor], weights: Mapping[str, float], aggregate: Literal["sum", "gdpo"] = "sum"
) -> Tensor:
    """U [B], float64, GARDO's eq. 7: the win rate of the trained reward, less the mean of those of the rewards of weight 0.

    The trained reward is the sum of those of another weight, as :func:`.weighted_sum` adds them. NaN where it does not apply,
    and where none of the others does.
    """
    trained = win_rate(weighted_sum(rewards, weights, aggregate))
    others = torch.stack([win_rate(rewards[label]) for label, weight in weights.items() if weight == 0])
    return trained - others.nanmean(0)


def most_uncertain(uncertainties: Tensor, share: float) -> Tensor:
    """[B], bool: the ``share`` of those that are known with the largest, at least one; of equal ones the first."""
    order = uncertainties.nan_to_num(nan=-torch.inf).sort(descending=True, stable=True).indices
    known = int(uncertainties.isfinite().sum())
    chosen = torch.zeros(len(uncertainties), dtype=torch.bool)
    chosen[order[: min(known, max(1, round(share * known)))]] = True
    return chosen
