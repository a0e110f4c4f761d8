"""Held-out prompts with fixed noise, scored by rewards that may be others than those trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flowfactory.assembly import Assembly
from flowfactory.config import RunConfig
from flowfactory.prompts import grouped
from flowfactory.sampler import Sampler, samples_of
from flowfactory.types import HELD_OUT, Prompt, SamplingPlan

EVALUATION = "evaluation"


@dataclass(frozen=True)
class Evaluated:
    """media [B, ...], the B prompts, and {label: scores [B]}."""

    media: Tensor
    prompts: tuple[str, ...]
    scores: dict[str, Tensor]

    def metrics(self) -> dict[str, float]:
        """``eval/<label>/mean``."""
        return {f"eval/{label}/mean": float(score.double().mean()) for label, score in self.scores.items()}


def evaluate(
    sampler: Sampler,
    assembly: Assembly,
    config: RunConfig,
    prompts: Sequence[Prompt],
    members: int | None = None,
    score: bool = True,
) -> Evaluated:
    """Draw ``prompts`` with the ODE and noise that no iteration changes, and score them unless told otherwise."""
    chosen, sampling = config.evaluation, config.sampling
    batch = grouped(prompts, members or chosen.members)
    plan = SamplingPlan(
        steps=chosen.steps or sampling.steps,
        size=chosen.size or sampling.size,
        guidance=sampling.guidance if chosen.guidance is None else chosen.guidance,
        dynamics=assembly.ode,
        seed=config.seed,
        iteration=HELD_OUT,
        keys=batch.keys,
        weights=EVALUATION if chosen.average else None,
    )
    conditions = sampler.conditions(batch.prompts, plan.guidance)
    media = sampler.draw(conditions, plan, chosen.batch_size or sampling.batch_size).media
    scores = assembly.evaluation_rewards(samples_of(media, batch)) if score else {}
    return Evaluated(media, batch.texts, scores)
