"""A one-file plugin for the tests: an algorithm with times of its own that compares groups and says who draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from flowfactory import AlgorithmConfig, Experience, Loss, Policy, SamplingPlan, hookimpl
from flowfactory.config.ema import Constant
from flowfactory.flow.timesteps import Timesteps, Uniform, noised_batches
from flowfactory.rl.losses import squared_error

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig


class MatchConfig(AlgorithmConfig):
    """The matching error at training timesteps, weighed by the advantage; an average of the weights draws."""

    groupwise: ClassVar[bool] = True
    own_sampler: ClassVar[bool] = True

    teacher: float = Field(1.0, ge=0, description="guidance asked of weights beside those that draw")
    timesteps: Timesteps = Field(Uniform(), description="training timesteps")

    def check(self, run: RunConfig) -> None:
        self.timesteps.check(run)

    def build(self, label: str) -> Match:
        return Match(self)


class Match:
    """One loss a sample and training time."""

    def __init__(self, config: MatchConfig) -> None:
        self.config = config

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        policy.track_ema("drawing", Constant(decay=0.5))

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        return replace(plan, weights="drawing", teacher_guidance=self.config.teacher)

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        for groups in experience.group_batches():
            for at in noised_batches(groups, self.config.timesteps):
                for piece in at.micro_batches():
                    error = squared_error(policy.evaluate(piece.step).velocity, piece.target)
                    yield Loss(piece.samples.advantages * error, metrics={"sigma": piece.step.sigma})


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    register("algorithm", "match", MatchConfig)
