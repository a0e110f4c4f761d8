"""DiffusionNFT, arXiv:2509.16117: good samples pull an implicit positive policy, bad ones a negative one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from flowfactory import At, Experience, Loss, Policy, SamplingPlan, hookimpl
from flowfactory.flow import Discrete, NoisedBatch, Timesteps, TimestepsConfig, expand_sigma, noised_micro_batches
from flowfactory.policy import REFERENCE, Comparison, Decay, PiecewiseLinear, keep_kl_reference, kl_reference
from flowfactory.rl import KL, NORM_GUARD, NormGuardConfig, add_kl, guard_norm, optimality, squared_error, velocity_kl

if TYPE_CHECKING:
    from torch import Tensor


OLD = "old"


class NFTConfig(NormGuardConfig, TimestepsConfig):
    """DiffusionNFT, arXiv:2509.16117: contrasts two implicit policies around the old one, at times of its own."""

    known_as = ("diffusion-nft", "negative-aware")

    own_sampler: ClassVar[bool] = True

    beta: float = Field(1.0, gt=0, description="how far the two implicit policies stand from the old one")
    advantage_max: float = Field(5.0, gt=0, description="the advantage at which a sample counts as wholly good")
    timesteps: Timesteps = Field(Discrete(), description="training timesteps")
    kl: KL = Field(1e-4, description="weight of the squared distance from the velocity that training started from")
    old: Decay = Field(
        PiecewiseLinear(points=((0, 0.0), (500, 0.5))),
        description="how the average of weights moves that draws the samples",
    )

    def build(self, label: str) -> NFT:
        return NFT(self)


class NFT:
    """One loss a sample and training time. The old policy draws."""

    def __init__(self, config: NFTConfig) -> None:
        self._config = config
        self._kept = {"old": At(OLD)} | ({"reference": At(kl_reference(config.kl))} if config.kl else {})
        if config.norm_guard:
            self._kept[NORM_GUARD] = At(REFERENCE)

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Keep the old policy, and the reference if a penalty needs one."""
        policy.track_ema(OLD, self._config.old)
        keep_kl_reference(policy, self._config.kl)
        if self._config.norm_guard:
            policy.keep_reference()

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        """The old policy draws."""
        return replace(plan, weights=OLD)

    @hookimpl
    def comparisons(self, experience: Experience) -> Iterator[Comparison]:
        """What is compared at each place."""
        for at in noised_micro_batches(experience, self._config.timesteps):
            yield at.step, self._kept

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """(r L+ + (1 - r) L-) a_max / beta + kl |v - v_ref|² at each place, arXiv:2509.16117, eq. 6 and 13."""
        for at in noised_micro_batches(experience, self._config.timesteps):
            yield self.loss(at, policy)

    def loss(self, at: NoisedBatch, policy: Policy) -> Loss:
        """The losses of the rows of ``at``."""
        config = self._config
        new, kept = policy.compare(at.step, self._kept)
        old = kept["old"].velocity
        r = optimality(at.samples.advantages, config.advantage_max)
        good = x0_error(at, (1 - config.beta) * old + config.beta * new.velocity)
        bad = x0_error(at, (1 + config.beta) * old - config.beta * new.velocity)
        values = (r * good + (1 - r) * bad) * config.advantage_max / config.beta
        loss = Loss(values, metrics={"optimality": r, "old_distance": velocity_kl(new.velocity, old)})
        if config.kl:
            loss = add_kl(loss, config.kl, at.samples, velocity_kl(new.velocity, kept["reference"].velocity))
        if config.norm_guard:
            loss = guard_norm(loss, config.norm_guard, new.velocity, kept[NORM_GUARD].velocity)
        return loss


def x0_error(at: NoisedBatch, velocity: Tensor) -> Tensor:
    """[b]: squared error of the clean latents that ``velocity`` implies, in units of its own mean absolute error."""
    latents = at.step.latents.float()
    return squared_error(latents - expand_sigma(at.step.sigma, latents) * velocity, at.samples.latents.float(), scaled=True)
