"""A one-file plugin for the runs of these tests: a reward for bright pictures, and the plainest policy gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from flowfactory import (
    AlgorithmConfig,
    ComponentConfig,
    Experience,
    Loss,
    Policy,
    Samples,
    SamplingPlan,
    hookimpl,
)


class BrightConfig(ComponentConfig):
    """The mean brightness."""

    def build(self, label: str) -> Bright:
        return Bright(label)


class Bright:
    def __init__(self, label: str) -> None:
        self.label = label

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        return {self.label: samples.media.flatten(1).mean(1)}


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
        for batch in experience.batches():
            for step in batch.steps:
                log_prob = policy.evaluate(step).log_prob
                assert log_prob is not None
                yield Loss(-batch.advantages * log_prob)


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    register("reward", "bright", BrightConfig)
    register("algorithm", "reinforce", ReinforceConfig)
