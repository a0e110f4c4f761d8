"""The loss on records that joins an algorithm's, DDRL, arXiv:2512.04332."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from flowfactory.experience import Loss
from flowfactory.flow.timesteps import LogitNormal
from flowfactory.policy.flow_matching import flow_matching
from flowfactory.training.record_rollouts import collect_records
from flowfactory.training.regularising_prompts import regularising_prompts
from flowfactory.training.rollouts import Rollouts
from flowfactory.training.setup import Run

TIMES = LogitNormal(count=1, shift="model")


@dataclass(frozen=True)
class Regularising:
    """The records of an iteration, and what their loss weighs."""

    records: Rollouts
    weight: float

    @staticmethod
    def of(run: Run, iteration: int) -> Regularising | None:
        """Those of ``iteration``; None where the config asks for none. A joint work of the ranks."""
        chosen = run.config.training.regularise
        if chosen is None:
            return None
        prompts = regularising_prompts(run.targets, run.config, iteration)
        return Regularising(collect_records(run, iteration, prompts, "targets"), chosen.sft)

    def losses(self, run: Run, rows: Sequence[int], epoch: int) -> Iterator[Loss]:
        """The losses of this rank's part of the records ``rows``, whose sum on all ranks is the weight times their mean."""
        experience = self.records.experience
        share = self.weight / (len(rows) * TIMES.count)
        for piece, counts in self.records.micro_batches([[row] for row in rows], experience.batch_size, epoch):
            for loss in flow_matching(piece, run.policy, TIMES):
                counted = loss if counts else loss.empty()
                yield Loss(share * counted.values, metrics={"sft": counted.values})

    @property
    def groups(self) -> torch.Tensor:
        """[n], each record its own."""
        return self.records.experience.groups
