"""Drawing a batch: conditions, plan and the model's ``sample``, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowfactory.assembly import Hooks
from flowfactory.conditions import ConditionCache
from flowfactory.policy import Policy
from flowfactory.prompts import Batch
from flowfactory.types import Conditions, Prompt, Samples, SamplingPlan, Step, Trajectory


class Sampler:
    """Draws what a plan says."""

    def __init__(self, hooks: Hooks, policy: Policy, cache: ConditionCache, guided: bool, negative: str) -> None:
        self._hooks, self._policy, self._cache = hooks, policy, cache
        self._negative = Prompt(negative) if guided else None

    def conditions(self, prompts: Sequence[Prompt], guidance: float) -> Conditions:
        """The conditions of ``prompts``, with the negative prompt's where ``guidance`` needs them."""
        return self._cache.conditions(prompts, self._negative if guidance > 1 else None)

    def draw(self, conditions: Conditions, plan: SamplingPlan, batch_size: int) -> Trajectory:
        """The trajectory of all samples of ``plan``, drawn at most ``batch_size`` at once, with the weights it names."""
        pieces = []
        with self._policy.using(plan.weights), self._policy.precision():
            for start in range(0, len(plan.keys), batch_size):
                index = range(start, min(start + batch_size, len(plan.keys)))
                pieces.append(self._hooks.sample(conditions.rows(index), plan.rows(index)))
        return joined(pieces, conditions)


def joined(pieces: Sequence[Trajectory], conditions: Conditions) -> Trajectory:
    """The pieces as one trajectory, in order; ``conditions`` are those of all."""
    if len(pieces) == 1:
        return pieces[0]
    steps = [Step.joined(same, conditions) for same in zip(*(piece.steps for piece in pieces), strict=True)]
    return Trajectory(
        torch.cat([piece.media for piece in pieces]),
        torch.cat([piece.latents for piece in pieces]),
        pieces[0].sigmas,
        tuple(steps),
    )


def samples_of(media: Tensor, batch: Batch) -> Samples:
    """What the rewards see of a drawn batch."""
    return Samples(media, batch.texts, batch.groups, tuple(prompt.metadata for prompt in batch.prompts))
