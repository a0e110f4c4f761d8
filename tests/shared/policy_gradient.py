"""A one-file plugin for the runs of these tests: the plainest policy gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from flowfactory import AlgorithmConfig, Experience, Loss, Policy, SamplingPlan, hookimpl


class ReinforceConfig(AlgorithmConfig):
    """The log-density of each recorded step, weighed by its advantage."""

    def build(self, label: str) -> Reinforce:
        return Reinforce()


class Reinforce:
    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        return replace(plan, recorded=plan.stochastic)

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        for batch in experience.micro_batches():
            for step in batch.steps:
                log_prob = policy.evaluate(step).log_prob
                assert log_prob is not None
                yield Loss(-batch.advantages * log_prob)


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    register("algorithm", "reinforce", ReinforceConfig)
