"""Surrogates and matching losses, one value a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from flowfactory.config.clip_range import bounds
from flowfactory.experience import Loss


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip_range: float | tuple[float, float]) -> Tensor:
    """Loss [B]: -min(ratio A, clip(ratio, 1 - below, 1 + above) A). PPO, arXiv:1707.06347, eq. 7."""
    below, above = bounds(clip_range)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - below, 1 + above) * advantage)


def is_clipped(ratio: Tensor, advantage: Tensor, clip_range: float | tuple[float, float]) -> Tensor:
    """[B], 1.0 where the surrogate's gradient is cut: the ratio is past the bound on the side the advantage pushes to."""
    below, above = bounds(clip_range)
    past = torch.where(advantage > 0, ratio > 1 + above, (ratio < 1 - below) & (advantage < 0))
    return past.float()


def clip_ratio(ratio: Tensor, advantage: Tensor, clip_range: float | tuple[float, float]) -> Loss:
    """The loss :func:`clipped_surrogate` of the ratio [b], and what is reported of it."""
    return Loss(
        clipped_surrogate(ratio, advantage, clip_range),
        metrics={"ratio/mean": ratio},
        extremes={"ratio/max_deviation": (ratio - 1).abs()},
        cuts={"clip_fraction": is_clipped(ratio, advantage, clip_range)},
        ratios=ratio,
    )


def optimality(advantage: Tensor, maximum: float) -> Tensor:
    """[B] in [0, 1]: clamp(A / (2 maximum) + 1/2). DiffusionNFT, arXiv:2509.16117."""
    return (advantage / (2 * maximum) + 0.5).clamp(0, 1)


def squared_error(estimate: Tensor, target: Tensor, scaled: bool = False) -> Tensor:
    """[B]: mean over elements of the squared error, divided by its own detached mean absolute error if ``scaled``."""
    error = (estimate.float() - target).flatten(1)
    mean = error.square().mean(1)
    return mean / error.detach().abs().mean(1).clamp(min=1e-5) if scaled else mean
