"""Flash-GRPO, arXiv:2605.15980: a group is trained at one step of its own, and all steps with gradients of one size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field

from flowfactory import Experience, Loss, Policy, SamplingPlan, hookimpl
from flowfactory.flow import generator
from flowfactory.rl import ClipRange, kl_weight
from flowfactory_grpo.grpo import surrogate
from flowfactory_grpo.policy_gradient import CLIPPED_RATIO, PolicyGradient, PolicyGradientConfig

if TYPE_CHECKING:
    from torch import Tensor

    from flowfactory import RunConfig


class FlashGRPOConfig(PolicyGradientConfig):
    """Flash-GRPO, arXiv:2605.15980: GRPO at one stochastic step a picture, the same one in a group and others in others."""

    known_as = ("flash", "iso-temporal")

    trust_region: ClassVar[Mapping[str, tuple[str, ...]]] = CLIPPED_RATIO

    clip_range: ClipRange = Field(1e-3, description="bound on |ratio - 1|, or one below and one above")
    rectify: bool = Field(
        True, description="whether steps are weighed so that the velocity's gradient is of one size at all of them"
    )

    def check(self, run: RunConfig) -> None:
        """The dynamics have a log-density, a mean that is linear in the velocity, and a window that is drawn."""
        super().check(run)
        dynamics = run.sampling.dynamics
        if self.rectify and not dynamics.linear:
            raise ValueError(
                "algorithm flash-grpo weighs steps by how far the mean moves with the velocity, which is exact where it is "
                "linear in it; sampling.dynamics does not say so: choose flow-sde, dance-sde or cps, or set rectify to false"
            )
        if getattr(dynamics, "slide", None) is not None:
            raise ValueError(
                "algorithm flash-grpo draws steps for each group, and a window that slides is in one place for all: leave "
                "sampling.dynamics.slide out, or choose grpo"
            )
        if run.training.keep_graphs:
            raise ValueError(
                "algorithm flash-grpo learns from other steps of one group than of another, and a forward draws both: leave "
                "training.keep_graphs out"
            )

    def remarks(self, run: RunConfig) -> Iterator[str]:
        """More steps of a picture than one."""
        yield from super().remarks(run)
        if getattr(run.sampling.dynamics, "num_sde_steps", 1) is None:
            yield (
                "algorithm flash-grpo trains every stochastic step of a picture, all of them: set "
                "sampling.dynamics.num_sde_steps to 1, as published, or choose grpo"
            )

    def build(self, label: str) -> FlashGRPO:
        return FlashGRPO(self)


class FlashGRPO(PolicyGradient):
    """GRPO at the steps of each group's own window, weighed by what their gradients are to be divided by."""

    def __init__(self, config: FlashGRPOConfig) -> None:
        super().__init__(config, partial(surrogate, clip_range=config.clip_range))
        self._rectify = config.rectify

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        """The stochastic steps of each prompt, drawn for it, and they alone are recorded."""
        windows = {prompt: _window(plan, prompt) for prompt in dict.fromkeys(key.prompt for key in plan.keys)}
        stochastic = frozenset[int]().union(*windows.values())
        return replace(plan, windows=windows, stochastic=stochastic, recorded=stochastic, means=self._means)

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """-w min(r A, clip(r) A) + kl D(policy || reference) of each recorded step, w by :func:`rectification`."""
        mean = _mean_size(experience) if self._rectify else 1.0
        for samples, step in experience.replay():
            new, kept = policy.compare(step, self._kept)
            loss = self._surrogate(step, new, samples.advantages)
            if self._rectify:
                assert step.next_sigma is not None
                weight = rectification(step.dynamics, step.sigma, step.next_sigma) / mean
                loss = replace(loss, values=weight * loss.values, metrics={**loss.metrics, "step_weight": weight})
            if self._kl:
                loss = loss.add_term("kl", kl_weight(self._kl, experience), self._divergence(new, kept["reference"]))
            yield loss


def _window(plan: SamplingPlan, prompt: int) -> frozenset[int]:
    source = generator("window", plan.seed, plan.iteration, prompt)
    return plan.dynamics.window(plan.steps, plan.iteration, source)


def rectification(dynamics: Any, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """[b]: one over |d log-density / d velocity| of a step whose noise is one standard deviation, Flash-GRPO, arXiv:2605.15980.

    For a Gaussian density it is the standard deviation over how far the mean moves with the velocity. Where the mean is linear
    in latents and velocity it depends on neither.
    """
    s, then = sigma.float().reshape(-1, 1), next_sigma.float().reshape(-1, 1)
    with torch.enable_grad():
        velocity = torch.zeros_like(s, requires_grad=True)
        found = dynamics.transition(velocity, torch.zeros_like(s), s, then)
        density = dynamics.log_density((found.mean + found.std).detach(), found)
        (slope,) = torch.autograd.grad(density.sum(), velocity)
    return 1 / slope.abs().flatten()


def _mean_size(experience: Experience) -> Tensor:
    """The mean of :func:`rectification` over the steps of all the iteration's prompts, whichever rank has them."""
    steps = torch.tensor([step for window in experience.plan.windows.values() for step in sorted(window)])
    sigmas = experience.sigmas.cpu()
    return rectification(experience.plan.dynamics, sigmas[steps], sigmas[steps + 1]).mean().to(experience.advantages.device)
