"""The reference that preferences are measured against: frozen or averaged, with a guidance of its own or the trained one."""

from __future__ import annotations

from dataclasses import replace
from typing import Generic, TypeVar

from pydantic import Field

from flowfactory import At, Policy, SamplingPlan, hookimpl
from flowfactory.flow import TimestepsConfig
from flowfactory.policy import REFERENCE, Decay
from flowfactory.rl import NORM_GUARD, NormGuardConfig

AVERAGE = "preference reference"


class ReferenceConfig(NormGuardConfig, TimestepsConfig):
    """Options of the reference."""

    reference_ema: Decay | None = Field(
        None, description="how the reference follows the policy; left out, it stays where training started"
    )
    reference_guidance: float | None = Field(
        None, ge=0, le=100, description="guidance of the reference; that of the trained velocity when left out"
    )


Config = TypeVar("Config", bound=ReferenceConfig)


class ReferenceAlgorithm(Generic[Config]):
    """What algorithms that measure from the reference share.

    ``_reference`` is where to evaluate it, ``_others`` what else is compared, such as what the guard of the norm needs, and
    ``_wanted`` both.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._reference = At(REFERENCE if config.reference_ema is None else AVERAGE, config.reference_guidance)
        self._others = {NORM_GUARD: At(REFERENCE)} if config.norm_guard else {}

    @property
    def _wanted(self) -> dict[str, At]:
        return {"reference": self._reference, **self._others}

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Keep the reference, and where training started if the guard of the norm needs it."""
        if self._config.reference_ema is None or self._config.norm_guard:
            policy.keep_reference()
        if self._config.reference_ema is not None:
            policy.track_ema(AVERAGE, self._config.reference_ema)

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        """The conditions bring what the reference's guidance needs."""
        return replace(plan, teacher_guidance=max(plan.teacher_guidance, self._reference.guidance or 1.0))
