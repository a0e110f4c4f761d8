"""On-policy distillation from several teachers, arXiv:2605.15055: the student draws, and each prompt's teacher corrects it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from flowfactory import Experience, Loss, Policy, RunInfo, SamplingPlan, Step, hookimpl
from flowfactory.flow import expand_sigma
from flowfactory.policy import TeachersConfig
from flowfactory.rl import squared_error, velocity_kl

if TYPE_CHECKING:
    from torch import Tensor


class OPDConfig(TeachersConfig):
    """On-policy distillation, arXiv:2605.15055: one student follows several teachers, each on its own prompts."""

    known_as = ("on-policy-distillation", "flow-opd", "multi-teacher", "teacher-distillation")

    rewarded: ClassVar[bool] = False

    target: Literal["x_next", "velocity", "x0"] = Field(
        "x_next",
        description="what of the teacher's is to be met: where its Euler step leads, its velocity, or the clean latents",
    )
    self_normalize: bool = Field(
        False, description="whether each sample's error is in units of its own mean absolute difference, which has no gradient"
    )
    share: float = Field(0.99, gt=0, le=1, description="of the schedule's steps, from the noise on, those that are learned at")
    teacher_guidance: float | None = Field(
        None, ge=0, le=100, description="guidance of the teachers; that of the trained velocity when left out"
    )

    def build(self, label: str) -> OPD:
        return OPD(self)


class OPD:
    """One loss a sample and recorded step. The student draws."""

    def __init__(self, config: OPDConfig) -> None:
        self._config = config
        self._by_source: dict[str, str] = {}

    @hookimpl
    def run_started(self, run: RunInfo, policy: Policy) -> None:
        """Read the teachers."""
        policy.teachers.read(self._config.teachers)
        self._by_source = self._config.by_source(run.config.prompts)

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        """The first steps are recorded, at least one; the conditions bring what the teachers' guidance needs."""
        count = max(1, int(self._config.share * plan.steps + 1e-9))
        guidance = max(plan.teacher_guidance, self._config.teacher_guidance or 1.0)
        return replace(plan, recorded=frozenset(range(count)), teacher_guidance=guidance)

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """mean(d²) at each recorded state, d the difference of student and teacher in ``target``."""
        places = tuple(replace(step, next_sigma=None, next_latents=None, log_prob=None, mean=None) for step in experience.steps)
        for samples, step in replace(experience, steps=places).replay():
            yield self.loss(samples, step, policy)

    def loss(self, samples: Experience, step: Step, policy: Policy) -> Loss:
        """The losses of the rows of ``step``, which are those of ``samples``."""
        config, chosen = self._config, samples.plan.training_guidance
        step = step if chosen is None else replace(step, guidance=chosen)
        names = [self._by_source[source] for source in samples.sources or [""] * len(samples)]
        asked = step if config.teacher_guidance is None else replace(step, guidance=config.teacher_guidance)
        teacher = policy.evaluate_teachers(names, asked)
        student = policy.evaluate(step).velocity
        difference = self.scale(step, samples.sigmas) * (student - teacher)
        values = squared_error(difference, torch.zeros_like(difference), scaled=config.self_normalize)
        return Loss(values, metrics={"teacher_distance": velocity_kl(student, teacher)})

    def scale(self, step: Step, sigmas: Tensor) -> Tensor:
        """[b, 1...]: what a difference of velocities at ``step`` is multiplied by to be one in ``target``."""
        sigma = step.sigma.float()
        match self._config.target:
            case "velocity":
                factor = torch.ones_like(sigma)
            case "x0":
                factor = -sigma
            case "x_next":
                schedule = sigmas.to(sigma)
                place = (schedule[None] - sigma[:, None]).abs().argmin(1)
                factor = schedule[place + 1] - sigma
        return expand_sigma(factor, step.latents)
