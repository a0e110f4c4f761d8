"""Flow-DPPO, arXiv:2606.11025: a bound on the exact divergence of each step takes the place of the ratio's clip."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from flowfactory import Evaluation, Loss, Step
from flowfactory.rl import mean_kl
from flowfactory_grpo.policy_gradient import PolicyGradient, PolicyGradientConfig, gaussians, ratio

if TYPE_CHECKING:
    from torch import Tensor


class DPPOConfig(PolicyGradientConfig):
    """Flow-DPPO, arXiv:2606.11025: GRPO whose trust region is the exact KL between the step as drawn and as it is now."""

    known_as = ("flow-dppo",)

    trust_region: ClassVar[Mapping[str, tuple[str, ...]]] = {"kl_old/max": ("kl_bound",)}

    kl_bound: float = Field(
        1e-6, gt=0, le=1, description="largest KL of a step from the one that drew it, a mean over elements"
    )

    def build(self, label: str) -> PolicyGradient:
        return PolicyGradient(self, partial(surrogate, kl_bound=self.kl_bound), means=True)


def surrogate(step: Step, new: Evaluation, advantage: Tensor, kl_bound: float) -> Loss:
    """-m r A, where m is 0 if the step is out of the trust region and A pushes it further out, and 1 if not."""
    r = ratio(step, new)
    divergence = mean_kl(*gaussians(step, new)).detach()
    outwards = ((advantage > 0) & (r > 1)) | ((advantage < 0) & (r < 1))
    masked = outwards & (divergence > kl_bound)
    return Loss(
        -torch.where(masked, 0.0, r * advantage),
        metrics={"ratio/mean": r, "kl_old": divergence},
        extremes={"ratio/max_deviation": (r - 1).abs(), "kl_old/max": divergence},
        cuts={"masked_fraction": masked.float()},
        ratios=r,
    )
