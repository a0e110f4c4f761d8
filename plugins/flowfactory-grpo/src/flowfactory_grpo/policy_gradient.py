"""What algorithms that learn from the log-density of recorded steps share; each brings its surrogate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import AlgorithmConfig, At, Evaluation, Experience, Loss, Policy, SamplingPlan, Step, hookimpl
from flowfactory.policy import Comparison, keep_kl_reference, kl_reference
from flowfactory.rl import KL, add_kl, mean_kl, velocity_kl

if TYPE_CHECKING:
    from flowfactory import RunConfig

Surrogate = Callable[[Step, Evaluation, Tensor], Loss]
"""``surrogate(recorded step, evaluation now, advantage [b])``: the loss without the KL."""


CLIPPED_RATIO: Mapping[str, tuple[str, ...]] = {"ratio/max_deviation": ("clip_range",)}
"""The trust region of what :func:`flowfactory.rl.clip_ratio` makes."""


class PolicyGradientConfig(AlgorithmConfig):
    """What the options of GRPO and its relatives share."""

    kl: KL = Field(0.0, description="weight of the divergence from the model that training started from")
    kl_form: Literal["mean", "velocity"] = Field(
        "mean", description="mean: KL of the two Gaussian steps; velocity: mean squared difference of the velocities"
    )

    def check(self, run: RunConfig) -> None:
        """The dynamics have a log-density."""
        if not run.sampling.dynamics.stochastic:
            name, chosen = getattr(self, "name", ""), getattr(run.sampling.dynamics, "name", "")
            raise ValueError(
                f"algorithm {name} learns from the log-density of sampled steps, and the steps of sampling.dynamics {chosen!r} "
                "are deterministic and have none; choose stochastic dynamics, such as {name: flow-sde}"
            )

    def remarks(self, run: RunConfig) -> Iterator[str]:
        """The form of a KL, and none; a place of kept weights, and none; more steps in a forward than there are."""
        if self.kl_form != "mean" and not self.kl:
            yield "algorithm.kl_form does nothing while algorithm.kl is 0; set kl, or leave it out"
        if run.training.kept_on == "host" and not self.kl and run.sampling.ema is None and run.evaluation.ema is None:
            yield "training.kept_on does nothing while no average and no reference is kept; set an ema or kl, or leave it out"
        if (together := run.training.timesteps_per_forward) > run.sampling.steps:
            yield f"training.timesteps_per_forward {together}: there are {run.sampling.steps} sampling steps; set it lower"


class PolicyGradient:
    """The surrogate, and a KL to the reference, of every recorded step. ``means``: the surrogate reads the step's mean."""

    def __init__(self, config: PolicyGradientConfig, surrogate: Surrogate, means: bool = False) -> None:
        self._surrogate, self._means, self._kl = surrogate, means, config.kl
        self._divergence = _mean_form if config.kl_form == "mean" else _velocity_form
        self._kept = {"reference": At(kl_reference(config.kl))} if config.kl else {}

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Keep the reference, if the KL needs one."""
        keep_kl_reference(policy, self._kl)

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        """Record just the stochastic steps: they are all that is trained on."""
        return replace(plan, recorded=plan.stochastic, means=self._means)

    @hookimpl
    def comparisons(self, experience: Experience) -> Iterator[Comparison]:
        """The reference of each recorded step, if the KL needs one."""
        return ((step, self._kept) for _, step in experience.replay())

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """The surrogate + kl D(policy || reference) of each recorded step."""
        yield from self.losses(experience, policy, self._surrogate)

    def losses(self, experience: Experience, policy: Policy, surrogate: Surrogate) -> Iterator[Loss]:
        """As :meth:`update`, of any ``surrogate``."""
        for samples, step in experience.replay():
            new, kept = policy.compare(step, self._kept)
            loss = surrogate(step, new, samples.advantages)
            if self._kl:
                loss = add_kl(loss, self._kl, samples, self._divergence(new, kept["reference"]))
            yield loss


def ratio(step: Step, new: Evaluation) -> Tensor:
    """[b]: density of the recorded step now, over what it was when it was drawn."""
    assert new.log_prob is not None
    assert step.log_prob is not None
    return torch.exp(new.log_prob - step.log_prob)


def gaussians(step: Step, new: Evaluation) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the recorded step now, the mean that it was drawn from, and the std of both."""
    assert new.mean is not None
    assert new.std is not None
    assert step.mean is not None
    return new.mean, step.mean, new.std


def _mean_form(new: Evaluation, reference: Evaluation) -> Tensor:
    assert new.mean is not None
    assert reference.mean is not None
    assert new.std is not None
    return mean_kl(new.mean, reference.mean, new.std)


def _velocity_form(new: Evaluation, reference: Evaluation) -> Tensor:
    return velocity_kl(new.velocity, reference.velocity)
