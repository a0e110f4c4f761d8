"""The plainest algorithm there is, for runs in which something else is tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flowfactory.config.component import AlgorithmConfig
from flowfactory.discovery.specs import hookimpl
from flowfactory.experience import Experience, Loss
from flowfactory.policy.policy import Policy
from flowfactory.types import SamplingPlan


class PolicyGradientConfig(AlgorithmConfig):
    """The log-density of each recorded step, weighed by its advantage; needs stochastic dynamics."""

    def build(self, label: str) -> PolicyGradient:
        return PolicyGradient()


class PolicyGradient:
    """REINFORCE without a baseline beside the advantage."""

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        """All stochastic steps are recorded."""
        return replace(plan, recorded=plan.stochastic)

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """One loss a recorded step."""
        for samples, step in experience.replay():
            log_prob = policy.evaluate(step).log_prob
            assert log_prob is not None
            yield Loss(-samples.advantages * log_prob)
