"""Divergences of two flows, or of two steps."""

from __future__ import annotations

from torch import Tensor


def velocity_kl(velocity: Tensor, reference: Tensor) -> Tensor:
    """[B]: mean squared difference of two velocities, the KL of the two flows up to a time weighting."""
    return (velocity - reference).square().flatten(1).mean(1)


def mean_kl(mean: Tensor, reference: Tensor, std: Tensor) -> Tensor:
    """[B]: KL of two Gaussian steps of equal std [B, 1...], mean over elements. Flow-GRPO, arXiv:2505.05470, eq. 12."""
    return ((mean - reference).square() / (2 * std.square())).flatten(1).mean(1)
