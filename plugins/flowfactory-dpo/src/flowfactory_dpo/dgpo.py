"""DGPO, arXiv:2510.08425: the good part of a group is preferred to the bad part, all samples at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import At, Evaluation, Experience, Loss, Policy, SamplingPlan, hookimpl
from flowfactory.flow import NoisedBatch, Timesteps, Uniform, noised_batches
from flowfactory.policy import Comparison, Decay, Linear, keep_kl_reference, kl_reference, look_ahead
from flowfactory.rl import KL, NORM_GUARD, ClipRange, add_kl, group_sum, guard_norm, is_clipped, squared_error, velocity_kl
from flowfactory_dpo.reference import ReferenceAlgorithm, ReferenceConfig

if TYPE_CHECKING:
    from flowfactory import RunConfig

SLOW = "clip average"


class DGPOConfig(ReferenceConfig):
    """DGPO, arXiv:2510.08425: advantage-weighted matching, less where the group's preference is learned already."""

    known_as = ("group-dpo",)

    groupwise: ClassVar[bool] = True

    beta: float = Field(100.0, gt=0, description="how sharply a difference of errors, a mean over elements, is preferred")
    kl: KL = Field(0.0, description="weight of the squared distance from the velocity that training started from")
    kl_guidance: float | None = Field(
        None, ge=0, le=100, description="guidance of that velocity; that of the trained one when left out"
    )
    timesteps: Timesteps = Field(Uniform(low=0.5625), description="training timesteps")
    clip_range: ClipRange | None = Field(
        1e-2, description="bound on |ratio - 1| of matching errors to those of a slow average, or [below, above]; null: none"
    )
    ema: Decay = Field(
        Linear(end=0.3, iterations=300, counted="steps"), description="how the average moves that clip_range measures from"
    )

    def remarks(self, run: RunConfig) -> Iterator[str]:
        """Guidance of a KL, and none."""
        yield from super().remarks(run)
        if self.kl_guidance is not None and not self.kl:
            yield "algorithm.kl_guidance does nothing while algorithm.kl is 0; set kl, or leave it out"

    def build(self, label: str) -> DGPO:
        return DGPO(self)


class DGPO(ReferenceAlgorithm[DGPOConfig]):
    """One loss a sample and training time, weighed by its whole group at that time.

    ``role``: whose weights learn it; the policy's where it is empty.
    """

    role = ""

    def __init__(self, config: DGPOConfig) -> None:
        super().__init__(config)
        if config.kl:
            self._others["anchor"] = At(kl_reference(config.kl), config.kl_guidance)
        if config.clip_range is not None:
            self._others["slow"] = At(SLOW)

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Keep the reference, and where training started if the KL needs it."""
        super().run_started(policy)
        keep_kl_reference(policy, self._config.kl)
        if self._config.clip_range is not None:
            policy.track_ema(SLOW, self._config.ema, self.role)

    def measure_from(self, weights: str) -> None:
        """Have the reference, and what the KL is to, be the kept ``weights``."""
        self._reference = At(weights, self._config.reference_guidance)
        if "anchor" in self._others:
            self._others["anchor"] = At(weights, self._config.kl_guidance)

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        """The conditions bring what the guidance of both references needs."""
        plan, guidance = super().plan(plan), self._config.kl_guidance if self._config.kl else None
        return replace(plan, teacher_guidance=max(plan.teacher_guidance, guidance or 1.0))

    @hookimpl
    def comparisons(self, experience: Experience) -> Iterator[Comparison]:
        """What is compared at each place."""
        for groups in experience.group_batches():
            for at in noised_batches(groups, self._config.timesteps, shared=True):
                yield from ((piece.step, self._wanted) for piece in at.micro_batches())

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """weight A e + kl |v - v_ref|² at each place; the weight is the group's, detached. arXiv:2510.08425, eq. 18."""
        for groups in experience.group_batches():
            for at in noised_batches(groups, self._config.timesteps, shared=True):
                yield from self.losses(at, policy)

    def losses(self, at: NoisedBatch, policy: Policy) -> Iterator[Loss]:
        """The losses of ``at``, which holds whole groups, a forward's worth each."""
        pieces, wanted = at.micro_batches(), self._wanted
        if len(pieces) == 1:
            new, kept = policy.compare(at.step, wanted)
            yield self._loss(at, new, self.weight(at, self._gap(at, new, kept).detach()), kept)
            return
        # the group's weight wants all its members before the first of them is back-propagated
        ahead = look_ahead(policy, pieces, wanted, self._reference, self._gap)
        gap = torch.cat([gap for gap, _ in ahead]) if ahead else torch.zeros_like(at.step.sigma)
        weights = torch.split(self.weight(at, gap), [len(piece) for piece in pieces])
        for i, piece in enumerate(pieces):
            new, kept = policy.compare(piece.step, {} if ahead else self._others)
            yield self._loss(piece, new, weights[i], ahead[i][1] if ahead else kept)

    def error(self, velocity: Tensor, at: NoisedBatch) -> Tensor:
        """[b]: how far a velocity is from that of the samples."""
        return squared_error(velocity, at.target)

    def _gap(self, at: NoisedBatch, new: Evaluation, kept: Mapping[str, Evaluation]) -> Tensor:
        return self.error(new.velocity, at) - self.error(kept["reference"].velocity, at)

    def weight(self, at: NoisedBatch, gap: Tensor) -> Tensor:
        """[b]: sigmoid of the sum over the group of A beta (e - e_ref) / K; ``gap`` [b] is e - e_ref."""
        size = group_sum(torch.ones_like(gap), at.groups)
        return torch.sigmoid(group_sum(at.samples.advantages * self._config.beta * gap / size, at.groups))

    def _loss(self, at: NoisedBatch, new: Evaluation, weight: Tensor, kept: Mapping[str, Evaluation]) -> Loss:
        advantage, error, clip_range = at.samples.advantages, self.error(new.velocity, at), self._config.clip_range
        metrics, cuts = {"weight": weight}, dict[str, Tensor]()
        if clip_range is not None:
            ratio = torch.exp(self.error(kept["slow"].velocity, at) - error.detach())
            cut = is_clipped(ratio, advantage, clip_range)
            error = torch.where(cut > 0, error.detach(), error)
            metrics["ratio/mean"], cuts["clip_fraction"] = ratio, cut
        loss = Loss(weight * advantage * error, metrics=metrics, cuts=cuts)
        if self._config.kl:
            loss = add_kl(loss, self._config.kl, at.samples, velocity_kl(new.velocity, kept["anchor"].velocity))
        if self._config.norm_guard:
            loss = guard_norm(loss, self._config.norm_guard, new.velocity, kept[NORM_GUARD].velocity)
        return loss
