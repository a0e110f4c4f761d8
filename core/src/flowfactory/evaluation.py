"""Held-out prompts with fixed noise, scored by rewards that may be others than those trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowfactory.assembly import Assembly
from flowfactory.config import RunConfig
from flowfactory.prompts import grouped, whole_groups
from flowfactory.sampler import Sampler, merged, samples_of
from flowfactory.types import HELD_OUT, Prompt, SamplingPlan

EVALUATION = "evaluation"


@dataclass(frozen=True)
class Evaluated:
    """The B prompts, {label: scores [B]}, and the media that were to be kept, [k, ...]."""

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
    keep: int | None = None,
) -> Evaluated:
    """Draw ``prompts`` with the ODE and noise that no iteration changes, and score them unless told otherwise.

    The first ``keep`` media are kept, all when it is None.
    """
    chosen, sampling = config.evaluation, config.sampling
    batch = grouped(prompts, members or chosen.members)
    plan = SamplingPlan(
        steps=chosen.steps or sampling.steps,
        canvas=chosen.canvas(sampling),
        guidance=sampling.guidance if chosen.guidance is None else chosen.guidance,
        dynamics=assembly.ode,
        seed=config.seed,
        iteration=HELD_OUT,
        keys=batch.keys,
        weights=EVALUATION if chosen.average else None,
    )
    batch_size = chosen.batch_size or sampling.batch_size
    kept, scores, left = [], [], len(batch.keys) if keep is None else keep
    for rows in whole_groups(batch, batch_size):
        part = batch.rows(rows)
        conditions = sampler.conditions(part.prompts, plan.guidance, plan.canvas)
        media = sampler.draw(conditions, plan.rows(rows), batch_size).media
        if score:
            scores.append(assembly.evaluation_rewards(samples_of(media, part, sampler.frame_rate)))
        kept.append(media[:left].cpu())
        left -= len(kept[-1])
    return Evaluated(torch.cat(kept), batch.texts, merged(scores) if score else {})
