"""Advantage-weighted matching, arXiv:2509.25050: the pretraining loss, weighed by how good a sample is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from flowfactory import At, Experience, Loss, Policy, hookimpl
from flowfactory.flow import Discrete, NoisedBatch, Timesteps, TimestepsConfig, noised_micro_batches
from flowfactory.policy import REFERENCE, Comparison, Constant, Decay, Linear, keep_kl_reference, kl_reference
from flowfactory.rl import (
    KL,
    NORM_GUARD,
    ClipRange,
    NormGuardConfig,
    add_kl,
    clip_ratio,
    guard_norm,
    squared_error,
    velocity_kl,
)

if TYPE_CHECKING:
    from torch import Tensor

    from flowfactory import RunConfig


OLD, EMA = "old", "ema"
SMALL = 1e-10
TIMES = Discrete(count=6, initial=False)
"""Those of the published recipes for GenEval and OCR. Of a shorter schedule they are as many as it has."""


class AWMConfig(NormGuardConfig, TimestepsConfig):
    """AWM, arXiv:2509.25050: the ratio of matching errors takes the place of the ratio of log-densities."""

    known_as = ("advantage-weighted-matching",)

    weighting: Literal["uniform", "t", "t2", "huber", "ghuber"] = Field(
        "ghuber", description="how error and time make the log-density: error, t error, t² error, t root, t power"
    )
    power: float = Field(0.25, gt=0, le=1, description="of ghuber; 1 is the weighting t")
    clip_range: ClipRange = Field(1.0, description="bound on |ratio - 1|, or one below and one above")
    advantage_scale: float = Field(
        0.2, gt=0, description="what advantages are multiplied by; those clipped to 5 are then at most 1"
    )
    timesteps: Timesteps = Field(TIMES, description="training timesteps; by default all if there are fewer")
    kl: KL = Field(1e-3, description="weight of the squared distance from the velocity that training started from")
    ema_kl: float = Field(1.0, ge=0, description="weight of the squared distance from the average's velocity")
    ema: Decay = Field(Linear(end=0.3, iterations=300), description="how that average of weights moves")

    def check(self, run: RunConfig) -> None:
        """Training timesteps that were chosen go with the sampling steps; the default ones always do."""
        if self.timesteps != TIMES:
            super().check(run)

    def remarks(self, run: RunConfig) -> Iterator[str]:
        """An exponent of another weighting."""
        yield from super().remarks(run)
        if self.power != 0.25 and self.weighting != "ghuber":
            yield f"algorithm.power is of the weighting ghuber, and does nothing under {self.weighting}; leave it out"

    def build(self, label: str) -> AWM:
        return AWM(self)


class AWM:
    """One loss a sample and training time."""

    def __init__(self, config: AWMConfig) -> None:
        self._config = config
        self._log_density = WEIGHTINGS[config.weighting]
        kept = {"old": At(OLD), "reference": At(kl_reference(config.kl)), "ema": At(EMA), NORM_GUARD: At(REFERENCE)}
        unused = {"reference": config.kl, "ema": config.ema_kl, NORM_GUARD: config.norm_guard}
        self._kept = {key: at for key, at in kept.items() if unused.get(key, 1)}

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Keep the weights that each iteration starts from, and what the penalties need."""
        policy.track_ema(OLD, Constant(decay=0))
        keep_kl_reference(policy, self._config.kl)
        if self._config.norm_guard:
            policy.keep_reference()
        if self._config.ema_kl:
            policy.track_ema(EMA, self._config.ema)

    @hookimpl
    def comparisons(self, experience: Experience) -> Iterator[Comparison]:
        """What is compared at each place."""
        for at in noised_micro_batches(experience, times(self._config, experience)):
            yield at.step, self._kept

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """-min(r A, clip(r) A) + kl |v - v_ref|² + ema_kl |v - v_ema|² at each place."""
        for at in noised_micro_batches(experience, times(self._config, experience)):
            yield self.loss(at, policy)

    def loss(self, at: NoisedBatch, policy: Policy) -> Loss:
        """The losses of the rows of ``at``."""
        config = self._config
        advantage = config.advantage_scale * at.samples.advantages
        new, kept = policy.compare(at.step, self._kept)
        sigma, power = at.step.sigma.float(), config.power
        log_density = self._log_density(squared_error(new.velocity, at.target), sigma, power)
        old = self._log_density(squared_error(kept["old"].velocity, at.target), sigma, power)
        ratio = torch.exp(log_density - old)
        loss = clip_ratio(ratio, advantage, config.clip_range)
        if config.kl:
            loss = add_kl(loss, config.kl, at.samples, velocity_kl(new.velocity, kept["reference"].velocity))
        if config.ema_kl:
            loss = loss.add_term("ema_kl", config.ema_kl, velocity_kl(new.velocity, kept["ema"].velocity))
        if config.norm_guard:
            loss = guard_norm(loss, config.norm_guard, new.velocity, kept[NORM_GUARD].velocity)
        return loss


def times(config: AWMConfig, experience: Experience) -> Timesteps:
    """The training timesteps; in place of the default ones as many as ``experience`` has, where it has fewer."""
    steps = len(experience.sigmas) - 1
    if config.timesteps != TIMES or steps > TIMES.count:
        return config.timesteps
    return Discrete(count=max(1, steps - 1), initial=steps == 1)


LogDensity = Callable[["Tensor", "Tensor", float], "Tensor"]
"""``log_density(error [b], sigma [b], power) -> [b]``, up to what depends on sigma alone and so leaves the ratio as it is."""


def _uniform(error: Tensor, sigma: Tensor, power: float) -> Tensor:
    return -error


def _t(error: Tensor, sigma: Tensor, power: float) -> Tensor:
    return -sigma * error


def _t2(error: Tensor, sigma: Tensor, power: float) -> Tensor:
    return -sigma.square() * error


def _huber(error: Tensor, sigma: Tensor, power: float) -> Tensor:
    return sigma * (math.sqrt(SMALL) - torch.sqrt(error + SMALL))


def _ghuber(error: Tensor, sigma: Tensor, power: float) -> Tensor:
    return sigma * (math.pow(SMALL, power) - torch.pow(error + SMALL, power)) / power


WEIGHTINGS: dict[str, LogDensity] = {"uniform": _uniform, "t": _t, "t2": _t2, "huber": _huber, "ghuber": _ghuber}
