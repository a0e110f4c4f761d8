"""Recorded steps with the graphs of the forwards that drew them, held until they are learned from."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch

from flowfactory.errors import RunError, UserError
from flowfactory.types import Evaluation, Step


@dataclass
class DrawnGraphs:
    """What was drawn with a graph, in order."""

    held: deque[tuple[Step, Evaluation]] = field(default_factory=deque)

    def keep(self, step: Step, evaluation: Evaluation) -> None:
        """Hold ``evaluation``, differentiable, of a ``step`` that was drawn."""
        self.held.append((step, evaluation))

    def check_drawn(self) -> None:
        """UserError: nothing is held, though samples were drawn."""
        if not self.held:
            raise UserError(
                "training.keep_graphs: this model's sample keeps no graph of recorded steps; have it draw by "
                "flowfactory.flow.rollout, or leave the option out"
            )

    def check_empty(self) -> None:
        """RunError: something is held still, which nothing learned from."""
        if self.held:
            told = f"the update does not learn from {len(self.held)} of the steps that were drawn with their graphs"
            raise RunError(f"{told}; leave training.keep_graphs out")

    def take(self, step: Step) -> Evaluation | None:
        """What is held next, where it is of ``step``; it is held no more. None where it is of another."""
        if not self.held or not _same(self.held[0][0], step):
            return None
        return self.held.popleft()[1]


def _same(drawn: Step, step: Step) -> bool:
    """Whether they are one step of the same samples."""
    if drawn.latents.shape != step.latents.shape or drawn.guidance != step.guidance:
        return False
    return torch.equal(drawn.sigma, step.sigma) and torch.equal(drawn.latents, step.latents)
