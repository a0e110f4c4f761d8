"""Diffusion-DPO, arXiv:2311.12908, on flow matching and online: the best of a group against its worst."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch.nn import functional

from flowfactory import Experience, Loss, Policy, hookimpl
from flowfactory.flow import NoisedBatch, noised_batches
from flowfactory.policy import Comparison
from flowfactory.rl import NORM_GUARD, guard_norm, squared_error
from flowfactory_dpo.reference import ReferenceAlgorithm, ReferenceConfig

if TYPE_CHECKING:
    from flowfactory import RunConfig


class DPOConfig(ReferenceConfig):
    """Online DPO, arXiv:2311.12908: the best sample of each group is preferred to the worst."""

    known_as: ClassVar[tuple[str, ...]] = ("online-dpo",)

    groupwise: ClassVar[bool] = True
    compared: ClassVar[int | None] = 2

    beta: float = Field(1000.0, gt=0, description="how sharply a difference of errors, a mean over elements, is preferred")

    def check(self, run: RunConfig) -> None:
        """The training timesteps go with the sampling steps, and the two arms share them."""
        super().check(run)
        if self.timesteps.shared is False:
            raise ValueError(
                "algorithm.timesteps.shared: the two samples of a pair are compared under the same noise; leave it out"
            )

    def build(self, label: str) -> DPO:
        return DPO(self)


class DPO(ReferenceAlgorithm[DPOConfig]):
    """One loss a pair and training time."""

    @hookimpl
    def comparisons(self, experience: Experience) -> Iterator[Comparison]:
        """What is compared at each place."""
        return ((at.step, self._wanted) for at in self.places(experience))

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """-log sigmoid(-beta/2 [(e_w - e_w,ref) - (e_l - e_l,ref)]) of each pair at each time, arXiv:2311.12908, eq. 14."""
        for at in self.places(experience):
            yield self.loss(at, policy)

    def places(self, experience: Experience) -> Iterator[NoisedBatch]:
        """As many pairs as fit one forward at each of their times: the best of each group, then the worst."""
        best, worst = best_and_worst(experience)
        pairs = max(1, experience.batch_size // 2)
        for start in range(0, len(best), pairs):
            arms = experience.rows(best[start : start + pairs] + worst[start : start + pairs])
            yield from noised_batches(arms, self._config.timesteps, shared=True)

    def loss(self, at: NoisedBatch, policy: Policy) -> Loss:
        """The losses of the pairs in ``at``: for each of its times the best of all pairs, then the worst."""
        new, kept = policy.compare(at.step, self._wanted)
        gap = squared_error(new.velocity, at.target) - squared_error(kept["reference"].velocity, at.target)
        best, worst = _arms(gap, at)
        margin = -0.5 * self._config.beta * (best - worst)
        better, than = _arms(at.samples.advantages, at)
        # a group without spread has no best sample
        differs = (better > than).float()
        loss = Loss(-functional.logsigmoid(margin) * differs, metrics={"margin": margin, "preferred": (margin > 0).float()})
        if not self._config.norm_guard:
            return loss
        reference = kept[NORM_GUARD].velocity
        return guard_norm(
            loss, self._config.norm_guard, new.velocity, reference, rows=lambda each: torch.stack(_arms(each, at)).mean(0)
        )


def best_and_worst(experience: Experience) -> tuple[list[int], list[int]]:
    """The rows of the best and of the worst sample of every group, in the same order."""
    best, worst = [], []
    advantages = experience.advantages.tolist()
    sizes = torch.unique(experience.groups, return_counts=True)[1].tolist()
    for part in torch.split(experience.groups.argsort(stable=True), sizes):
        rows = part.tolist()
        best.append(max(rows, key=advantages.__getitem__))
        worst.append(min(rows, key=advantages.__getitem__))
    return best, worst


def _arms(values: torch.Tensor, at: NoisedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The best's values and the worst's, [pairs times times] each."""
    times = len(torch.unique(at.time))
    best, worst = values.reshape(times, 2, -1).unbind(1)
    return best.flatten(), worst.flatten()
