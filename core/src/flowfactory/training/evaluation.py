"""Held-out prompts with fixed noise, scored by rewards that may be others than those trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowfactory.config.schema import RunConfig
from flowfactory.data.batches import make_batch, split_whole_groups
from flowfactory.distributed.exchange import Holders
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.drift.panel import Panel
from flowfactory.rewards.statistics import source_metrics
from flowfactory.training.assembly import Assembly
from flowfactory.training.judging import Judging
from flowfactory.training.phases import begin_phase
from flowfactory.training.plans import evaluation_plan
from flowfactory.training.rollouts import roll_out
from flowfactory.training.sampler import Sampler
from flowfactory.types import Prompt


@dataclass(frozen=True)
class EvaluationResult:
    """The B prompts, {label: scores [B]}, and the media that were to be kept, [k, ...]."""

    media: Tensor
    prompts: tuple[str, ...]
    scores: dict[str, Tensor]
    drift: dict[str, float] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    """Of each prompt, where they have some."""

    def metrics(self) -> dict[str, float]:
        """``eval/<label>/mean`` and ``/std`` over the samples that it applies to, and ``eval/samples``, how many were drawn.

        Beside them ``drift/heldout/<figure>`` and ``/std`` of :class:`~flowfactory.drift.panel.Panel`.
        """
        found: dict[str, float] = {}
        for label, score in self.scores.items():
            known = score[score.isfinite()].double()
            if len(known):
                found |= {f"eval/{label}/mean": float(known.mean()), f"eval/{label}/std": float(known.std(correction=0))}
        found |= source_metrics(self.scores, self.sources, held_out=True)
        return found | ({"eval/samples": len(self.prompts)} if found else {}) | self.drift


def evaluate(
    sampler: Sampler,
    assembly: Assembly,
    config: RunConfig,
    prompts: Sequence[Prompt],
    members: int | None = None,
    score: bool = True,
    keep: int | None = None,
    ranks: Ranks = ALONE,
) -> EvaluationResult:
    """Draw ``prompts`` with the ODE and noise that no iteration changes, and score them unless told otherwise.

    The first ``keep`` media are kept, all when it is None, by the leading rank alone.
    """
    chosen, sampling = config.evaluation, config.sampling
    batch = make_batch(prompts, members or chosen.members)
    plan = evaluation_plan(assembly, config, batch.keys)
    batch_size = chosen.batch_size or sampling.batch_size
    workers = ranks.workers
    judges = config.distributed.count_reward_ranks(workers.count)
    judging = Judging(assembly.evaluation_rewards, batch, ranks, judges, sampler.frame_rate) if score else None
    panel = Panel(batch.groups, ranks) if score else None
    drawing = begin_phase(assembly.hooks, ranks, "evaluating", len(batch.keys))
    kept, left = [], len(batch.keys) if keep is None else keep
    for rows in split_whole_groups(batch, batch_size * workers.count):
        part = batch.rows(rows)
        conditions = sampler.conditions(part.prompts, plan.guidance, plan.canvas)
        drawn = roll_out(sampler, part, conditions, plan.rows(rows), batch_size, ranks, drawing.add)
        if judging:
            judging.add(drawn, rows)
        if panel:
            panel.add(drawn.trajectory.media, drawn.trajectory.latents, drawn.held, rows)
        first = range(min(left, len(rows)))
        shown = [first, *[()] * (workers.count - 1)]
        kept.append(workers.exchange([drawn.trajectory.media], Holders(drawn.held), shown)[0].cpu())
        left -= len(first)
    drift = panel.metrics("drift/heldout/") if panel else {}
    sources = tuple(prompt.source for prompt in batch.prompts)
    return EvaluationResult(torch.cat(kept), batch.texts, judging.scores() if judging else {}, drift, sources)
