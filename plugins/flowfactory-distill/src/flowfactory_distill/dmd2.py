"""DMD2, arXiv:2405.14867: the student's samples are to be distributed as the teacher's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import At, Experience, Loss, Policy, Step, hookimpl
from flowfactory.flow import training_generators
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


class DMD2Config(FewStepConfig):
    """DMD2, arXiv:2405.14867: a student of a few steps, by the difference of its teacher and a fake score."""

    known_as = ("dmd", "distribution-matching")

    low: float = Field(0.02, gt=0, lt=0.5, description="no sigma of the noise on the student's samples below")
    high: float = Field(0.98, gt=0.5, lt=1, description="no sigma above")

    def build(self, label: str) -> DMD2:
        return DMD2(self)


class DMD2(FewStep):
    """One loss a sample, at one of the steps that drew it."""

    def __init__(self, config: DMD2Config) -> None:
        super().__init__(config)
        self._low, self._high = config.low, config.high

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """Of the fake score |v - (noise - x_g)|², of the student 1/2 |x_g - (x_g - g)|². arXiv:2405.14867, eq. 2 and 3."""
        for samples in experience.micro_batches():
            step = choose_steps(samples)
            number, noise = draw(samples, "noise on samples")
            sigma = self._low + (self._high - self._low) * number
            learn = self.fake if experience.role == FAKE else self.student
            yield learn(policy, step, sigma, noise)

    def fake(self, policy: Policy, step: Step, sigma: Tensor, noise: Tensor) -> Loss:
        """Flow matching on what the student draws."""
        drawn = clean(step.latents, step.sigma, student_velocity(policy, step))
        place = place_at(step, add_noise(drawn, torch.zeros_like(sigma), sigma, noise), sigma)
        return Loss(squared_error(policy.evaluate(place).velocity, noise - drawn))

    def student(self, policy: Policy, step: Step, sigma: Tensor, noise: Tensor) -> Loss:
        """g = (x_fake - x_real) / mean |x_g - x_real|, with the teacher's guidance in x_real."""
        drawn = clean(step.latents, step.sigma, student_velocity(policy, step))
        place = place_at(step, add_noise(drawn, torch.zeros_like(sigma), sigma, noise), sigma)
        asked = policy.look(place, {"fake": At(FAKE), "real": self._guided})
        fake, real = (clean(place.latents, sigma, asked[name].velocity) for name in ("fake", "real"))
        target = drawn - (fake - real) / scale_of(drawn - real)
        reached = clean(step.latents, step.sigma, policy.evaluate(step).velocity)
        return Loss(0.5 * squared_error(reached, target), metrics={"gap": mean_of((fake - real).abs())})


def choose_steps(samples: Experience) -> Step:
    """One of the recorded steps of each of ``samples``, any of them as likely."""
    count, rows = len(samples.steps), len(samples)
    sources = training_generators(samples, samples.plan.keys, "step")
    chosen = [int(torch.randint(count, (), generator=source)) for source in sources]
    joined = Step.concatenate(samples.steps, samples.conditions.rows([*range(rows)] * count))
    return joined.rows([number * rows + row for row, number in enumerate(chosen)])
