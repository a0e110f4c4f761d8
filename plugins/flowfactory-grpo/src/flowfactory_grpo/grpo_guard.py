"""GRPO-Guard, arXiv:2510.22319: ratios of equal spread and gradients of equal size at every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from flowfactory import Evaluation, Loss, Step
from flowfactory.flow import expand_sigma
from flowfactory.rl import ClipRange, clip_ratio
from flowfactory_grpo.policy_gradient import CLIPPED_RATIO, PolicyGradient, PolicyGradientConfig, gaussians

if TYPE_CHECKING:
    from torch import Tensor

    from flowfactory import RunConfig


class GRPOGuardConfig(PolicyGradientConfig):
    """GRPO-Guard, arXiv:2510.22319: GRPO with normalised ratios, and steps weighed so that each has an equal say."""

    known_as = ("guard",)

    trust_region: ClassVar[Mapping[str, tuple[str, ...]]] = CLIPPED_RATIO

    clip_range: ClipRange = Field(
        1e-5,
        description="bound on |ratio - 1|, of the normalised ratio, or one below and one above",
    )

    def check(self, run: RunConfig) -> None:
        """The dynamics have a log-density, and a mean that is linear in the velocity."""
        super().check(run)
        if not run.sampling.dynamics.linear:
            raise ValueError(
                "algorithm grpo-guard weighs steps by how far the mean moves with the velocity, which is exact where it is "
                "linear in it; sampling.dynamics does not say so: choose flow-sde, dance-sde or cps"
            )

    def build(self, label: str) -> PolicyGradient:
        return PolicyGradient(self, partial(surrogate, clip_range=self.clip_range), means=True)


def surrogate(step: Step, new: Evaluation, advantage: Tensor, clip_range: float | tuple[float, float]) -> Loss:
    """The clipped surrogate of the normalised ratio, eq. 8, divided by how far the mean moves with the velocity."""
    assert step.next_latents is not None
    mean, old_mean, std = gaussians(step, new)
    r = torch.exp(normalized_log_ratio(mean, old_mean, step.next_latents, std))
    loss = clip_ratio(r, advantage, clip_range)
    return replace(loss, values=loss.values / slope(step))


def slope(step: Step) -> Tensor:
    """[b]: |d mean / d velocity| of each row's dynamics. For Flow-SDE below sigma 1 it is the step's length times 1 + a²/2."""
    assert step.next_sigma is not None
    sigma, next_sigma = expand_sigma(step.sigma, step.latents), expand_sigma(step.next_sigma, step.latents)
    one = torch.ones_like(sigma)
    return step.dynamics.transition(one, torch.zeros_like(one), sigma, next_sigma).mean.abs().flatten()


def normalized_log_ratio(mean: Tensor, old_mean: Tensor, next_latents: Tensor, std: Tensor) -> Tensor:
    """[B]: the log-ratio of two Gaussian steps, less its bias and in units of its own spread.

    Mean over elements of (mean - old_mean) (next_latents - old_mean) / std, which at the weights that drew is centred
    at zero whatever the step. GRPO-Guard, arXiv:2510.22319, eq. 8.
    """
    return ((mean - old_mean) * (next_latents.float() - old_mean) / std).flatten(1).mean(1)
