"""Whether the batches that an iteration draws are the micro-batches that its update learns from."""

from __future__ import annotations

from flowfactory.config.schema import RunConfig
from flowfactory.data.batches import make_batch, split_whole_groups
from flowfactory.distributed.partition import assign_rounds, split_with_padding
from flowfactory.errors import UserError
from flowfactory.types import Prompt

Batches = list[list[tuple[int, ...]]]
"""The samples of each batch of each rank, in order."""


def check_drawn_batches(config: RunConfig, ranks: int) -> None:
    """UserError: graphs are to be kept, and ``ranks`` draw the pictures in other batches than they learn from."""
    if not config.training.keep_graphs or drawn_batches(config, ranks) == learned_batches(config, ranks):
        return
    sampling = config.sampling
    several = f" times {ranks} ranks" if ranks > 1 else ""
    raise UserError(
        f"training.keep_graphs: {sampling.groups} groups of {sampling.group_size} pictures are drawn in other batches than "
        f"they are learned from; choose both batch_size so that it{several} is a multiple of sampling.group_size and divides "
        f"the {sampling.groups * sampling.group_size} pictures, or leave it out"
    )


def drawn_batches(config: RunConfig, ranks: int) -> Batches:
    """Those of one iteration's drawing."""
    sampling = config.sampling
    batch = make_batch([Prompt("", index) for index in range(sampling.groups)], sampling.group_size)
    found: Batches = [[] for _ in range(ranks)]
    for rows in split_whole_groups(batch, sampling.batch_size * ranks):
        for mine, held in zip(found, split_with_padding(rows, ranks), strict=True):
            mine += [tuple(held[start : start + sampling.batch_size]) for start in range(0, len(held), sampling.batch_size)]
    return found


def learned_batches(config: RunConfig, ranks: int) -> Batches:
    """Those of an update that learns from all samples, one by one."""
    samples = [[row] for row in range(config.sampling.groups * config.sampling.group_size)]
    rounds = list(assign_rounds(samples, config.training.batch_size, ranks))
    return [[tuple(rows[rank]) for rows in rounds] for rank in range(ranks)]
