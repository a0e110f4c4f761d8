"""TDM, arXiv:2503.06674: at each step the student's trajectory is to be distributed as the teacher's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import At, Experience, Loss, Policy, Step, hookimpl
from flowfactory.rl import squared_error
from flowfactory_distill.few_step import (
    FAKE,
    FewStep,
    FewStepConfig,
    add_noise,
    clean,
    draw,
    mean_of,
    place_at,
    scale_of,
    student_velocity,
)

SNR = 5.0
"""What the fake score's weight, the ratio of signal to noise, is capped at."""
EDGE = 0.02
"""The share of a step that a sigma inside it keeps from either end."""


class TDMConfig(FewStepConfig):
    """TDM, arXiv:2503.06674: a student of a few steps, each of which follows the teacher's distribution where it ends."""

    known_as = ("trajectory-distribution-matching",)

    huber: float = Field(1e-3, gt=0, description="where the pseudo-Huber loss goes from squares to absolute values")

    def build(self, label: str) -> TDM:
        return TDM(self)


class Boundary(NamedTuple):
    """Where a step of the student ends, with noise up to a sigma inside the step; and the clean latents that it predicts."""

    place: Step
    clean: Tensor


class TDM(FewStep):
    """One loss a sample and step."""

    def __init__(self, config: TDMConfig) -> None:
        super().__init__(config)
        self._huber = config.huber

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """Of the fake score min(SNR, 5) |x - x_g|², of the student Huber(x_real - x_fake). arXiv:2503.06674, eq. 7 and 8."""
        for samples in experience.micro_batches():
            for number, step in enumerate(samples.steps):
                boundary = self.boundary(samples, number, policy)
                yield self.fake(policy, boundary) if experience.role == FAKE else self.student(policy, step, boundary)

    def boundary(self, samples: Experience, number: int, policy: Policy) -> Boundary:
        """Where the student's step ``number`` brings ``samples``, noised to a sigma between its end and its begin."""
        step = samples.steps[number]
        velocity = student_velocity(policy, step)
        end = torch.full_like(step.sigma, float(samples.sigmas[number + 1]))
        share, noise = draw(samples, f"noise after step {number}")
        sigma = end + (step.sigma - end) * (EDGE + (1 - 2 * EDGE) * share)
        reached = clean(step.latents, step.sigma - end, velocity)
        place = place_at(step, add_noise(reached, end, sigma, noise), sigma)
        return Boundary(place, clean(step.latents, step.sigma, velocity))

    def fake(self, policy: Policy, boundary: Boundary) -> Loss:
        """The clean latents that the student predicted, weighed by the ratio of signal to noise up to 5."""
        place = boundary.place
        weight = ((1 - place.sigma) / place.sigma).square().clamp_max(SNR)
        found = clean(place.latents, place.sigma, policy.evaluate(place).velocity)
        return Loss(weight * squared_error(found, boundary.clean))

    def student(self, policy: Policy, step: Step, boundary: Boundary) -> Loss:
        """Towards the teacher under its guidance, and away from the fake score."""
        found = self.asked(policy, boundary.place, {"fake": At(FAKE), "real": self._guided})
        fake, real = found["fake"], found["real"]
        reached = clean(step.latents, step.sigma, policy.evaluate(step).velocity)
        values = self.follow(reached, real - fake, boundary.clean - real)
        return Loss(values, metrics={"gap": mean_of((fake - real).abs())})

    def asked(self, policy: Policy, place: Step, weights: dict[str, At]) -> dict[str, Tensor]:
        """The clean latents [b, ...] that each of ``weights`` takes those at ``place`` to be."""
        return {name: clean(place.latents, place.sigma, each.velocity) for name, each in policy.look(place, weights).items()}

    def follow(self, reached: Tensor, direction: Tensor, difference: Tensor) -> Tensor:
        """[b]: pseudo-Huber of ``reached`` from where ``direction`` leads, by the size of a ``difference`` [b, ...]."""
        miss = reached - (reached.detach() + direction)
        return mean_of(((miss.square() + self._huber**2).sqrt() - self._huber) / scale_of(difference))
