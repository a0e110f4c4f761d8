"""The reference that preferences are measured against: frozen or averaged, under guidance of its own or the step's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import Field

from flowfactory import At, Policy, SamplingPlan
from flowfactory.flow import TimestepsConfig
from flowfactory.policy import REFERENCE, Decay

AVERAGE = "preference reference"


class ReferenceConfig(TimestepsConfig):
    """Options of the reference."""

    reference_ema: Decay | None = Field(
        None, description="how the reference follows the policy; left out, it stays where training started"
    )
    reference_guidance: float | None = Field(None, ge=0, description="guidance of the reference; as in sampling when left out")


@dataclass(frozen=True)
class Reference:
    """Which kept weights the reference is."""

    decay: Decay | None
    guidance: float | None

    @classmethod
    def of(cls, config: ReferenceConfig) -> Reference:
        """The reference that ``config`` asks for."""
        return cls(config.reference_ema, config.reference_guidance)

    @property
    def kept(self) -> Mapping[str, At]:
        """Where to evaluate it."""
        return {"reference": At(REFERENCE if self.decay is None else AVERAGE, self.guidance)}

    def provided(self, plan: SamplingPlan) -> SamplingPlan:
        """``plan`` whose conditions bring what the reference's guidance needs."""
        return replace(plan, teacher_guidance=max(plan.teacher_guidance, self.guidance or 1.0))

    def keep(self, policy: Policy) -> None:
        """Keep its weights."""
        if self.decay is None:
            policy.keep_reference()
        else:
            policy.track_ema(AVERAGE, self.decay)
