"""Flow-GRPO, arXiv:2505.05470: the clipped surrogate over the log-densities of recorded SDE steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from flowfactory import Evaluation, Loss, Step
from flowfactory.rl import ClipRange, clip_ratio
from flowfactory_grpo.policy_gradient import CLIPPED_RATIO, PolicyGradient, PolicyGradientConfig, ratio

if TYPE_CHECKING:
    from torch import Tensor


class GRPOConfig(PolicyGradientConfig):
    """Flow-GRPO, arXiv:2505.05470: group advantages, the ratio of log-densities of sampled steps, a clipped surrogate."""

    known_as = ("flow-grpo", "ppo", "dance-grpo", "mix-grpo", "policy-gradient", "reinforce", "ddpo")

    trust_region: ClassVar[Mapping[str, tuple[str, ...]]] = CLIPPED_RATIO

    clip_range: ClipRange = Field(
        1e-4,
        description="bound on |ratio - 1|, or one below and one above; small, since the log-density is a mean over elements",
    )

    def build(self, label: str) -> PolicyGradient:
        return PolicyGradient(self, partial(surrogate, clip_range=self.clip_range))


def surrogate(step: Step, new: Evaluation, advantage: Tensor, clip_range: float | tuple[float, float]) -> Loss:
    """-min(r A, clip(r) A), arXiv:2505.05470, eq. 5."""
    return clip_ratio(ratio(step, new), advantage, clip_range)
