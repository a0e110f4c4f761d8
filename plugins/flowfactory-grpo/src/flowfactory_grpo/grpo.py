"""Flow-GRPO, arXiv:2505.05470: the clipped surrogate over the log-densities of recorded SDE steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from flowfactory import AlgorithmConfig, Evaluation, Experience, Loss, Policy, SamplingPlan, Step, hookimpl
from flowfactory.objectives import clipped_surrogate, is_clipped, mean_kl, velocity_kl

if TYPE_CHECKING:
    from torch import Tensor

    from flowfactory.config import RunConfig


class GRPOConfig(AlgorithmConfig):
    """Flow-GRPO, arXiv:2505.05470: group advantages, the ratio of log-densities of sampled steps, a clipped surrogate."""

    clip_range: float = Field(
        1e-4, gt=0, description="bound on |ratio - 1|; small, since the log-density is a mean over elements"
    )
    kl: float = Field(0.0, ge=0, description="weight of the divergence from the model that training started from")
    kl_form: Literal["mean", "velocity"] = Field(
        "mean", description="mean: KL of the two Gaussian steps; velocity: mean squared difference of the velocities"
    )

    def check(self, run: RunConfig) -> None:
        """The dynamics have a log-density."""
        if not run.sampling.dynamics.stochastic:
            raise ValueError(
                "algorithm grpo learns from the log-density of sampled steps, and the steps of sampling.dynamics 'ode' are "
                "deterministic and have none; choose stochastic dynamics, such as {name: flow-sde}"
            )

    def build(self, label: str) -> GRPO:
        return GRPO(self)


class GRPO:
    """One loss a recorded step and batch."""

    def __init__(self, config: GRPOConfig) -> None:
        self.clip_range, self.kl = config.clip_range, config.kl
        self._divergence = _mean_form if config.kl_form == "mean" else _velocity_form

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Keep the reference, if the KL needs one."""
        if self.kl:
            policy.keep_reference()

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        """Record just the stochastic steps: they are all that is trained on."""
        return replace(plan, recorded=plan.stochastic)

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """-min(r A, clip(r) A) + kl D(policy || reference) of each recorded step, arXiv:2505.05470, eq. 5."""
        for batch in experience.batches():
            for step in batch.steps:
                yield self.loss(step, batch.advantages, policy)

    def loss(self, step: Step, advantage: Tensor, policy: Policy) -> Loss:
        """The loss of one recorded step, advantage [b]."""
        reference = policy.evaluate_reference(step) if self.kl else None  # before the graph: weights may be swapped
        new = policy.evaluate(step)
        assert new.log_prob is not None
        assert step.log_prob is not None
        ratio = torch.exp(new.log_prob - step.log_prob)
        values = clipped_surrogate(ratio, advantage, self.clip_range)
        terms = {}
        if reference is not None:
            terms["kl"] = self._divergence(new, reference)
            values = values + self.kl * terms["kl"]
        return Loss(
            values,
            metrics={"ratio/mean": ratio, "clip_fraction": is_clipped(ratio, advantage, self.clip_range)},
            extremes={"ratio/max_deviation": (ratio - 1).abs()},
            terms=terms,
        )


def _mean_form(new: Evaluation, reference: Evaluation) -> Tensor:
    assert new.mean is not None
    assert reference.mean is not None
    assert new.std is not None
    return mean_kl(new.mean, reference.mean, new.std)


def _velocity_form(new: Evaluation, reference: Evaluation) -> Tensor:
    return velocity_kl(new.velocity, reference.velocity)
