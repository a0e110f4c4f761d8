"""What distillations to a few steps share: the student's clean predictions, noise on top of them, and the fake score.

The student is the policy, and its teacher the weights without adapters, or without any what training starts from. A fake score,
trained beside, tells how the student's samples are distributed; the student follows the difference of the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import AlgorithmConfig, At, Experience, Policy, RoleConfig, SamplingPlan, Step, hookimpl
from flowfactory.flow import expand_sigma, training_generators
from flowfactory.policy import POLICY, REFERENCE

if TYPE_CHECKING:
    from flowfactory import RunConfig

FAKE = "fake"
"""The role of the fake score."""
LEAST = 1e-6
"""Of what a difference is divided by."""


class FewStepConfig(AlgorithmConfig):
    """Options of distillations to a few steps."""

    rewarded: ClassVar[bool] = False
    taught_by_base: ClassVar[bool] = True

    fake: RoleConfig = Field(RoleConfig(steps=5), description="how the fake score is trained")
    teacher_guidance: float = Field(4.0, ge=0, le=100, description="guidance of the teacher, which the student takes on")

    def check(self, run: RunConfig) -> None:
        """Steps without noise, of one evaluation: where the student comes to is where its prediction points."""
        if (name := getattr(run.sampling.dynamics, "name", "ode")) != "ode":
            raise ValueError(
                f"sampling.dynamics: {name}: a student of a few steps takes those of ode; write ode, or leave it out"
            )

    def remarks(self, run: RunConfig) -> Iterator[str]:
        """Guidance of the student, beside what it takes on of its teacher's."""
        if self.teacher_guidance > 1 and run.model.takes_negatives():
            told = f"the student takes on its teacher's, algorithm.teacher_guidance {self.teacher_guidance:g}"
            for section, guidance in (("sampling", run.sampling.guidance), ("evaluation", run.evaluation.guidance)):
                if guidance is not None and guidance > 1:
                    yield f"{section}.guidance {guidance:g}: {told}, and is guided once more; write 1"

    @property
    def roles(self) -> Mapping[str, RoleConfig]:
        """The fake score."""
        return {FAKE: self.fake}


class FewStep:
    """What algorithms of this kind keep, and draw."""

    def __init__(self, config: FewStepConfig) -> None:
        self._teacher, self._guidance = At(REFERENCE), config.teacher_guidance

    @property
    def _guided(self) -> At:
        return At(self._teacher.weights, self._guidance)

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Keep the teacher, and let the fake score begin as it, whatever adapters the student starts from."""
        self._teacher = At(policy.keep_base())
        policy.add_role(FAKE)

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        """Every step is learned at, and the conditions bring what the teacher's guidance needs."""
        guidance = max(plan.teacher_guidance, self._guidance)
        return replace(plan, recorded=frozenset(range(plan.steps)), teacher_guidance=guidance)


def clean(latents: Tensor, sigma: Tensor, velocity: Tensor) -> Tensor:
    """[b, ...]: the clean latents that a velocity points to, x - sigma v."""
    return latents.float() - expand_sigma(sigma, latents) * velocity.float()


def add_noise(latents: Tensor, sigma: Tensor, to: Tensor, noise: Tensor) -> Tensor:
    """[b, ...]: latents at ``sigma`` [b] with as much more noise as brings them ``to`` another [b]; clean ones are at 0."""
    begin, end = expand_sigma(sigma, latents), expand_sigma(to, latents)
    share = (1 - end) / (1 - begin)
    return share * latents.float() + (end.square() - (share * begin).square()).clamp_min(0).sqrt() * noise


def draw(samples: Experience, purpose: str) -> tuple[Tensor, Tensor]:
    """A uniform number [b] and noise [b, ...] for each of ``samples``, whatever piece of all they are."""
    sources = training_generators(samples, samples.plan.keys, purpose)
    shape, device = samples.latents.shape[1:], samples.latents.device
    numbers = torch.stack([torch.rand((), generator=source) for source in sources]).to(device)
    return numbers, torch.stack([torch.randn(shape, generator=source) for source in sources]).to(device)


def place_at(step: Step, latents: Tensor, sigma: Tensor) -> Step:
    """A place to ask for velocities, for the samples of ``step``."""
    return Step(latents.to(step.latents.dtype), sigma, step.conditions, step.guidance, step.dynamics)


def student_velocity(policy: Policy, step: Step) -> Tensor:
    """[b, ...]: the student's velocity at ``step``, detached, whoever's weights are present."""
    return policy.look(step, {"student": At(POLICY)})["student"].velocity


def scale_of(difference: Tensor) -> Tensor:
    """[b, 1...]: the mean absolute element of each of a ``difference`` [b, ...]."""
    return difference.abs().mean(tuple(range(1, difference.dim())), keepdim=True).clamp_min(LEAST)


def mean_of(elements: Tensor) -> Tensor:
    """[b]: the mean over the elements of each."""
    return elements.flatten(1).mean(1)
