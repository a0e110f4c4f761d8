"""Which samples each optimizer step learns from, and which of them must share a forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flowfactory.config.component import AlgorithmConfig
from flowfactory.experience import Experience
from flowfactory.flow.noise import generator
from flowfactory.rl.groups import rows_by_group


def split_updates(groups: Tensor, updates: int, seed: int, iteration: int, epoch: int) -> Iterator[list[int]]:
    """The samples of each of ``updates`` optimizer steps, in an order of its own each epoch; ``groups`` [B].

    Groups stay whole where there are enough of them.
    """
    source = generator("shares", seed, iteration, epoch)
    known = torch.unique(groups)
    if len(known) >= updates:
        for part in known[torch.randperm(len(known), generator=source)].tensor_split(updates):
            yield torch.isin(groups, part).nonzero().flatten().tolist()
    else:
        for rows in torch.randperm(len(groups), generator=source).tensor_split(updates):
            yield rows.sort().values.tolist()


def micro_batch_units(rows: Sequence[int], experience: Experience, algorithm: AlgorithmConfig) -> tuple[list[list[int]], int]:
    """What must stay together of ``rows``, whole groups or single samples, and how much of it is a piece for a forward."""
    if not algorithm.groupwise:
        return [[row] for row in rows], experience.batch_size
    units = rows_by_group(rows, experience.groups)
    return units, max(1, experience.batch_size // (algorithm.compared or len(units[0])))
