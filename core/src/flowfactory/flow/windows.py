"""Stochastic steps that differ from prompt to prompt: who has which, and the recorded steps of each sample put together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flowfactory.types import Conditions, SamplingPlan, Step


def rows_within(plan: SamplingPlan, step: int) -> list[int]:
    """The samples of ``plan`` that step number ``step`` is stochastic for, where ``plan.windows`` say so."""
    return [row for row, key in enumerate(plan.keys) if step in plan.windows[key.prompt]]


def within(plan: SamplingPlan, step: int, latents: Tensor) -> Tensor:
    """[B, 1...]: whether step number ``step`` is stochastic for each sample, to go with ``latents`` [B, ...]."""
    found = torch.zeros(len(plan.keys), dtype=torch.bool)
    found[rows_within(plan, step)] = True
    return found.to(latents.device).reshape(-1, *([1] * (latents.dim() - 1)))


def join_own(plan: SamplingPlan, found: Mapping[int, Step], conditions: Conditions) -> tuple[Step, ...]:
    """The recorded steps of B samples, the first stochastic one of each, the second, and so on.

    ``found`` has the steps by their number, each with the samples of :func:`rows_within` alone. Windows are of one size. None
    of what is shared before they begin.
    """
    if not found:
        return ()
    own = [sorted(plan.windows[key.prompt]) for key in plan.keys]
    steps = []
    for place in range(len(own[0])):
        pieces, order = [], []
        for number, step in found.items():
            rows = rows_within(plan, number)
            mine = [i for i, row in enumerate(rows) if own[row][place] == number]
            if mine:
                pieces.append(step.rows(mine))
                order += [rows[i] for i in mine]
        joined = Step.concatenate(pieces, conditions.rows(order))
        steps.append(joined.rows(torch.tensor(order).argsort().tolist()))
    return tuple(steps)
