"""TDM-R1, arXiv:2603.07700: a few-step student that follows its teacher, and a reward that need not be differentiable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from torch import Tensor

from flowfactory import At, Experience, Loss, Policy, RoleConfig, Step, hookimpl
from flowfactory.flow import NoisedBatch, Uniform
from flowfactory.rl import squared_error
from flowfactory_distill.few_step import FAKE, clean, mean_of
from flowfactory_distill.tdm import TDM, Boundary, TDMConfig
from flowfactory_dpo.dgpo import DGPO, DGPOConfig

if TYPE_CHECKING:
    from flowfactory import RunConfig

SURROGATE = "surrogate"
"""The role of the weights that learn what the reward prefers."""


class TDMR1Config(TDMConfig):
    """TDM-R1, arXiv:2603.07700: TDM, and a surrogate that learns from rewards, whose difference the student follows."""

    known_as = ("tdmr1",)

    rewarded: ClassVar[bool] = True
    groupwise: ClassVar[bool] = True

    surrogate: RoleConfig = Field(RoleConfig(steps=1), description="how the surrogate of the reward is trained")
    beta: float = Field(10.0, gt=0, description="how sharply it prefers the good part of a group, of errors of clean latents")
    surrogate_kl: float = Field(1e-3, ge=0, description="weight of its squared distance from the teacher's velocity")
    clip_range: float = Field(1e-3, gt=0, le=1, description="bound on |ratio - 1| of its errors to those of its slow average")
    guidance_weight: float = Field(0.3, ge=0, description="weight of the teacher's guidance, as a reward")
    reward_weight: float = Field(0.7, ge=0, description="weight of the surrogate")

    def remarks(self, run: RunConfig) -> Iterator[str]:
        """A reward that the student does not follow."""
        yield from super().remarks(run)
        if not self.reward_weight:
            yield "algorithm.reward_weight 0: the student does not follow the rewards; set it higher, or take tdm"

    @property
    def roles(self) -> Mapping[str, RoleConfig]:
        """The fake score, then the surrogate."""
        return {**super().roles, SURROGATE: self.surrogate}

    def build(self, label: str) -> TDMR1:
        return TDMR1(self)


class Surrogate(DGPO):
    """DGPO on the errors of clean latents, by the weights of the role."""

    role = SURROGATE

    def error(self, velocity: Tensor, at: NoisedBatch) -> Tensor:
        """[b]: how far the clean latents are from the samples'."""
        return at.step.sigma.square() * squared_error(velocity, at.target)


class TDMR1(TDM):
    """The student follows its teacher, the teacher's guidance, and the surrogate's difference from the teacher."""

    def __init__(self, config: TDMR1Config) -> None:
        super().__init__(config)
        self._weights = config.guidance_weight, config.reward_weight
        options = {"beta": config.beta, "kl": config.surrogate_kl, "clip_range": config.clip_range}
        self._surrogate = Surrogate(DGPOConfig.model_validate({**options, "timesteps": Uniform(count=1)}))

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Keep the teacher; the fake score and the surrogate begin as it."""
        super().run_started(policy)
        policy.add_role(SURROGATE)
        self._surrogate.run_started(policy)
        self._surrogate.measure_from(self._teacher.weights)

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """Of the surrogate DGPO's losses on the samples, of the others TDM's."""
        if experience.role == SURROGATE:
            return self._surrogate.update(replace(experience, steps=()), policy)
        return super().update(experience, policy)

    def student(self, policy: Policy, step: Step, boundary: Boundary) -> Loss:
        """TDM without guidance, and by their weights what guidance adds and what the surrogate prefers."""
        names = {"fake": At(FAKE), "guided": self._guided, "real": self._teacher, "preferred": At(SURROGATE)}
        found = self.asked(policy, boundary.place, names)
        fake, guided, real, preferred = (found[name] for name in names)
        reached = clean(step.latents, step.sigma, policy.evaluate(step).velocity)
        matching = self.follow(reached, real - fake, boundary.clean - guided)
        guidance = self.follow(reached, guided - real, boundary.clean - guided)
        reward = self.follow(reached, preferred - real, boundary.clean - preferred)
        by_guidance, by_reward = self._weights
        metrics = {"gap": mean_of((fake - real).abs()), "preference": mean_of((preferred - real).abs())}
        return Loss(matching + by_guidance * guidance + by_reward * reward, metrics=metrics)
