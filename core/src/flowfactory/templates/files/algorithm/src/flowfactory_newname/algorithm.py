"""The algorithm: its options, what is recorded, and the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flowfactory import AlgorithmConfig, At, Experience, Loss, Policy, RunConfig, SamplingPlan, hookimpl
from flowfactory.policy import REFERENCE
from flowfactory.rl import mean_kl
from pydantic import Field


class NewNameConfig(AlgorithmConfig):
    """Advantage times log-density, and a divergence from the weights that training started from."""

    # Change: an option of yours is a field with a default, bounds and a description, which `flowfactory plugins show` prints.
    kl: float = Field(0.01, ge=0, description="weight of the divergence from the first weights")

    def check(self, run: RunConfig) -> None:
        """The steps have a log-density, and no picture is learned from twice."""
        # Change: refuse what does not go with your algorithm, in one sentence each.
        if not run.sampling.dynamics.stochastic:
            raise ValueError("newname needs steps with a log-density; set sampling.dynamics to flow-sde")
        if run.training.updates * run.training.epochs > 1:
            raise ValueError("newname learns from fresh pictures; set training.updates and epochs to 1")

    def build(self, label: str) -> NewName:
        return NewName(self.kl)


class NewName:
    """REINFORCE on the recorded steps."""

    def __init__(self, kl: float) -> None:
        self.kl = kl

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Remember the first weights."""
        policy.keep_reference()  # Change: policy.track_ema("name", decay) for an average of the weights

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        """All stochastic steps are recorded."""
        # Change: recorded=frozenset(), or no plan at all, for an algorithm that brings its own noise.
        return replace(plan, recorded=plan.stochastic)

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """A loss for each forward's worth of recorded steps."""
        for samples, step in experience.replay():
            new, kept = policy.compare(step, {"reference": At(REFERENCE)})
            first = kept["reference"].mean
            if new.log_prob is None or new.mean is None or new.std is None or first is None:
                raise ValueError("the step was not recorded")  # for the type checker: plan records all that are stochastic
            # Change: one value [b] a sample, with a gradient; core takes the mean and goes back through it.
            loss = Loss(-samples.advantages * new.log_prob)
            yield loss.add_term("kl", self.kl, mean_kl(new.mean, first, new.std))
