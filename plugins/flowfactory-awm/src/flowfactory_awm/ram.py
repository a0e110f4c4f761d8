"""Reinforce adjoint matching, arXiv:2605.10759: the reference's velocity, corrected by the reward, is regressed."""

from __future__ import annotations

from pydantic import Field

from flowfactory.flow import TimestepsConfig
from flowfactory.rl import NormGuardConfig
from flowfactory_awm.velocity_matching import Anchor, VelocityMatching


class RAMConfig(NormGuardConfig, TimestepsConfig):
    """RAM, arXiv:2605.10759: regression of the reference's velocity plus the advantage times the residual of pretraining."""

    known_as = ("reinforce-adjoint-matching", "adjoint-matching")

    reward_multiplier: float = Field(
        50.0, gt=0, description="what advantages are multiplied by; the pull to the reference weighs 1"
    )

    def build(self, label: str) -> VelocityMatching:
        return VelocityMatching(self.timesteps, self.reward_multiplier, Anchor(1.0), self.norm_guard)
