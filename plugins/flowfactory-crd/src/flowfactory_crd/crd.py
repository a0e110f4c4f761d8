"""Centred reward distillation, arXiv:2603.14128: the policy's own implicit reward is fitted to the reward, both centred."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch.nn import functional

from flowfactory import At, Evaluation, Experience, Loss, Policy, SamplingPlan, hookimpl
from flowfactory.flow import NoisedBatch, TimestepsConfig, noised_batches
from flowfactory.policy import REFERENCE, Comparison, Decay, PiecewiseLinear, keep_kl_reference, kl_reference, look_ahead
from flowfactory.rl import (
    KL,
    NORM_GUARD,
    NormGuardConfig,
    add_kl,
    group_max,
    group_sum,
    guard_norm,
    optimality,
    squared_error,
    velocity_kl,
)

if TYPE_CHECKING:
    from torch import Tensor

    from flowfactory import RunConfig


OLD, SAMPLING = "old", "crd sampling"
LEAST_KL = 1e-4


class CRDConfig(NormGuardConfig, TimestepsConfig):
    """CRD, arXiv:2603.14128: regression of centred implicit rewards, with a KL to a guided reference."""

    known_as = ("centred-reward-distillation", "reward-distillation")

    groupwise: ClassVar[bool] = True
    own_sampler: ClassVar[bool] = True

    beta: float = Field(1.0, gt=0, description="what the implicit reward is multiplied by")
    loss: Literal["mse", "bce"] = Field("mse", description="squared difference, or cross-entropy of the two sigmoids")
    centre: Literal["mean", "pools", "softmax"] = Field(
        "mean", description="mean of the group; or of its good and its bad samples; or weighed by how good and how bad"
    )
    temperature: float = Field(1.0, gt=0, description="of the weights of softmax; large is the mean")
    scaled: bool = Field(True, description="whether each error is in units of its own mean absolute error")
    advantage_max: float = Field(5.0, gt=0, description="the advantage at which the reward counts as 1")
    old: Decay = Field(
        PiecewiseLinear(points=((0, 0.25), (150, 0.999))),
        description="how the weights move that the implicit reward is from",
    )
    sampling: Decay = Field(
        PiecewiseLinear(points=((75, 0.0), (208, 0.999))), description="how the weights move that draw the samples"
    )
    kl: KL = Field(0.0, description="weight of the squared distance from the reference's velocity")
    kl_guidance: float | None = Field(
        None, ge=0, le=100, description="guidance of that reference; that of the trained velocity when left out"
    )
    kl_adaptive: bool = Field(True, description="whether a sample's KL is weighed by its reward, in [0, 1]")

    def remarks(self, run: RunConfig) -> Iterator[str]:
        """Options of a KL, or of a softmax, and none."""
        yield from super().remarks(run)
        if not self.kl and (self.kl_guidance is not None or not self.kl_adaptive):
            key = "kl_adaptive" if self.kl_guidance is None else "kl_guidance"
            yield f"algorithm.{key} does nothing while algorithm.kl is 0; set kl, or leave it out"
        if self.temperature != 1 and self.centre != "softmax":
            yield f"algorithm.temperature is of the centre softmax, and does nothing under {self.centre}; leave it out"

    def build(self, label: str) -> CRD:
        return CRD(self)


class CRD:
    """One loss a sample and training time, centred in its group at that time."""

    def __init__(self, config: CRDConfig) -> None:
        self._config = config
        self._old = {"old": At(OLD)}
        self._penalties = {"reference": At(kl_reference(config.kl), config.kl_guidance)} if config.kl else {}
        if config.norm_guard:
            self._penalties[NORM_GUARD] = At(REFERENCE)

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Keep the two snapshots, and the reference if a penalty needs one."""
        policy.track_ema(OLD, self._config.old)
        policy.track_ema(SAMPLING, self._config.sampling)
        keep_kl_reference(policy, self._config.kl)
        if self._config.norm_guard:
            policy.keep_reference()

    @hookimpl
    def plan(self, plan: SamplingPlan) -> SamplingPlan:
        """The sampling snapshot draws; the conditions bring what the reference's guidance needs."""
        guidance = self._config.kl_guidance if self._config.kl else None
        return replace(plan, weights=SAMPLING, teacher_guidance=max(plan.teacher_guidance, guidance or 1.0))

    @hookimpl
    def comparisons(self, experience: Experience) -> Iterator[Comparison]:
        """What is compared at each place."""
        for groups in experience.group_batches():
            for at in noised_batches(groups, self._config.timesteps):
                yield from ((piece.step, {**self._old, **self._penalties}) for piece in at.micro_batches())

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """The distillation loss + kl |v - v_ref|² at each place."""
        for groups in experience.group_batches():
            for at in noised_batches(groups, self._config.timesteps):
                yield from self.losses(at, policy)

    def losses(self, at: NoisedBatch, policy: Policy) -> Iterator[Loss]:
        """The losses of ``at``, which holds whole groups, a forward's worth each."""
        pieces, wanted = at.micro_batches(), {**self._old, **self._penalties}
        if len(pieces) == 1:
            new, kept = policy.compare(at.step, wanted)
            implicit = self.implicit_reward(at, new, kept)
            yield self._loss(at, implicit, self.centres(at, implicit), new, kept)
            return
        # the centre wants the whole group before the first of it is back-propagated
        ahead = look_ahead(policy, pieces, wanted, self._old["old"], self.implicit_reward)
        implicit = torch.cat([reward for reward, _ in ahead]) if ahead else torch.zeros_like(at.step.sigma)
        lengths = [len(piece) for piece in pieces]
        centres = [tuple(torch.split(centre, lengths) for centre in pair) for pair in self.centres(at, implicit)]
        for i, piece in enumerate(pieces):
            new, kept = policy.compare(piece.step, {} if ahead else wanted)
            kept = ahead[i][1] if ahead else kept
            mine = [(own[i], reward[i]) for own, reward in centres]
            yield self._loss(piece, self.implicit_reward(piece, new, kept), mine, new, kept)

    def implicit_reward(self, at: NoisedBatch, new: Evaluation, kept: Mapping[str, Evaluation]) -> Tensor:
        """[b]: how much smaller the present policy's error is than the old one's."""
        return self.error(kept["old"].velocity, at) - self.error(new.velocity, at)

    def error(self, velocity: Tensor, at: NoisedBatch) -> Tensor:
        """[b]: the error whose decrease from the old policy's to the present one's is the implicit reward."""
        return squared_error(velocity, at.target, self._config.scaled)

    def centres(self, at: NoisedBatch, implicit: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Detached centres of implicit reward and reward [b], one pair for each direction."""
        r = optimality(at.samples.advantages, self._config.advantage_max)
        weights = self._weights(r, at)
        return [
            (group_sum(w * implicit.detach(), at.groups), group_sum(w * r, at.groups))
            for w in (w / group_sum(w, at.groups) for w in weights)
        ]

    def _weights(self, r: Tensor, at: NoisedBatch) -> list[Tensor]:
        """What each sample counts in the centre of its group, [b], not yet divided by the group's sum."""
        match self._config.centre:
            case "mean":
                return [torch.ones_like(r)]
            case "pools":
                # r is 1/2 where the advantage is zero; a group without such samples is centred as a whole
                pools = [(r > 0.5).float(), (r < 0.5).float()]
                return [torch.where(group_sum(pool, at.groups) > 0, pool, 1.0) for pool in pools]
            case "softmax":
                # less the group's largest, so that no temperature is too low for exp
                ways = (r, -r)
                return [torch.exp((way - group_max(way, at.groups)) / self._config.temperature) for way in ways]

    def _loss(
        self,
        at: NoisedBatch,
        implicit: Tensor,
        centres: list[tuple[Tensor, Tensor]],
        new: Evaluation,
        kept: Mapping[str, Evaluation],
    ) -> Loss:
        config = self._config
        r = optimality(at.samples.advantages, config.advantage_max)
        parts = [self._match(config.beta * (implicit - own), r - reward) for own, reward in centres]
        values = torch.stack(parts).mean(0) * config.advantage_max / config.beta
        loss = Loss(values, metrics={"implicit_reward": implicit, "optimality": r})
        if config.norm_guard:
            loss = guard_norm(loss, config.norm_guard, new.velocity, kept[NORM_GUARD].velocity)
        if not config.kl:
            return loss

        def weigh(kl: float) -> float | Tensor:
            least = min(1.0, LEAST_KL / kl)
            return kl * (least + r * (1 - least)) if config.kl_adaptive else kl

        return add_kl(loss, config.kl, at.samples, velocity_kl(new.velocity, kept["reference"].velocity), weigh)

    def _match(self, implicit: Tensor, reward: Tensor) -> Tensor:
        if self._config.loss == "mse":
            return (implicit - reward).square()
        return functional.binary_cross_entropy_with_logits(implicit, torch.sigmoid(reward), reduction="none")
