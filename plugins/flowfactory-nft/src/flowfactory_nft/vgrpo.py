"""V-GRPO, arXiv:2604.23380: GRPO whose log-density is minus the error of the clean latents that a velocity implies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from flowfactory import At, Evaluation, Experience, Loss, Policy, hookimpl
from flowfactory.flow import NoisedBatch, Timesteps, TimestepsConfig, Uniform, expand_sigma, noised_batches
from flowfactory.policy import REFERENCE, Comparison, Constant, keep_kl_reference, kl_reference, look_ahead
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
from flowfactory_nft.nft import x0_error

if TYPE_CHECKING:
    from torch import Tensor


OLD = "old"


class VGRPOConfig(NormGuardConfig, TimestepsConfig):
    """V-GRPO, arXiv:2604.23380: the ratio of a sample is by how much its error, the mean over its times, has fallen."""

    known_as = ("vgrpo", "variational-grpo")

    timesteps: Timesteps = Field(Uniform(count=4), description="training timesteps")
    clip_range: ClipRange = Field(0.2, description="bound on |ratio - 1|, or one below and one above")
    advantage_max: float = Field(3.0, gt=0, description="soft bound m of the advantages, which become m tanh(A / m)")
    kl: KL = Field(0.0, description="weight of the squared distance from the velocity that training started from")
    old_kl: float = Field(
        0.0, ge=0, description="weight of the squared distance from the clean latents of the weights that drew"
    )

    def build(self, label: str) -> VGRPO:
        return VGRPO(self)


class VGRPO:
    """One loss a sample and training time; those of a sample share its ratio."""

    def __init__(self, config: VGRPOConfig) -> None:
        self._config = config
        self._old = {"old": At(OLD)}
        self._wanted = self._old | ({"reference": At(kl_reference(config.kl))} if config.kl else {})
        if config.norm_guard:
            self._wanted[NORM_GUARD] = At(REFERENCE)

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Keep the weights that each iteration starts from, and the reference if the KL needs one."""
        policy.track_ema(OLD, Constant(decay=0))
        keep_kl_reference(policy, self._config.kl)
        if self._config.norm_guard:
            policy.keep_reference()

    @hookimpl
    def comparisons(self, experience: Experience) -> Iterator[Comparison]:
        """What is compared at each place."""
        for pieces in self._pieces(experience):
            yield from ((at.step, self._wanted) for at in pieces)

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """-min(r A', clip(r) A') + kl |v - v_ref|² + old_kl |x0 - x0_old|² at each place, arXiv:2604.23380."""
        for pieces in self._pieces(experience):
            yield from self.losses(pieces, policy)

    def _pieces(self, experience: Experience) -> Iterator[list[NoisedBatch]]:
        """All times of as many samples as fit a forward, a forward's worth each; members of a group share noise and times."""
        for batch in experience.micro_batches():
            yield list(noised_batches(batch, self._config.timesteps, shared=True))

    def losses(self, pieces: list[NoisedBatch], policy: Policy) -> Iterator[Loss]:
        """The losses of ``pieces``, which are all times of the same samples."""
        if len(pieces) == 1:
            yield self._loss(pieces[0], *policy.compare(pieces[0].step, self._wanted), None)
            return
        # the ratio wants all times of a sample before the first of them is back-propagated
        ahead = look_ahead(policy, pieces, self._wanted, self._old["old"], log_ratio)
        samples = len(pieces[0]) // (int(pieces[0].time[-1]) + 1)
        whole = _by_time([log for log, _ in ahead], samples).mean(0) if ahead else pieces[0].step.sigma.new_zeros(samples)
        for i, at in enumerate(pieces):
            new, kept = policy.compare(at.step, {} if ahead else self._wanted)
            yield self._loss(at, new, ahead[i][1] if ahead else kept, whole)

    def _loss(self, at: NoisedBatch, new: Evaluation, kept: Mapping[str, Evaluation], whole: Tensor | None) -> Loss:
        """The losses of ``at``; ``whole`` is each sample's log-ratio over all its times, None where ``at`` has them all."""
        config, own = self._config, log_ratio(at, new, kept)
        if whole is None:
            whole = _by_time([own], len(own) // config.timesteps.count).mean(0)
        # the value is the sample's ratio, and the gradient this time's part of its gradient
        ratio = torch.exp(whole.detach().repeat(len(own) // len(whole)) + own - own.detach())
        advantage = config.advantage_max * torch.tanh(at.samples.advantages / config.advantage_max)
        loss = clip_ratio(ratio, advantage, config.clip_range)
        if config.kl:
            loss = add_kl(loss, config.kl, at.samples, velocity_kl(new.velocity, kept["reference"].velocity))
        if config.old_kl:
            sigma = expand_sigma(at.step.sigma, new.velocity)
            loss = loss.add_term("old_kl", config.old_kl, squared_error(sigma * new.velocity, sigma * kept["old"].velocity))
        if config.norm_guard:
            loss = guard_norm(loss, config.norm_guard, new.velocity, kept[NORM_GUARD].velocity)
        return loss


def log_ratio(at: NoisedBatch, new: Evaluation, kept: Mapping[str, Evaluation]) -> Tensor:
    """[b]: how much smaller the error of each row is than it was at the old weights."""
    return x0_error(at, kept["old"].velocity) - x0_error(at, new.velocity)


def _by_time(rows: list[Tensor], samples: int) -> Tensor:
    """[times, samples] from the rows of pieces, in which the samples of one time stand together."""
    return torch.cat(rows).reshape(-1, samples)
