"""Which samples go from which rank to which: worked out once, for all tensors that they consist of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from flowfactory.device_copies import send
from flowfactory.distributed.partition import Rows


class Holders:
    """Where each sample is, of those that the ranks hold: ``held[rank]``, in order."""

    def __init__(self, held: Rows) -> None:
        self.held = held
        self._places: dict[int, list[tuple[int, int]]] = {}
        for rank, rows in enumerate(held):
            for place, row in enumerate(rows):
                self._places.setdefault(row, []).append((rank, place))

    def source(self, row: int) -> tuple[int, int]:
        """The rank that gives away the sample ``row``, the first that holds it, and its place there."""
        return self._places[row][0]

    def everywhere(self, row: int) -> Sequence[tuple[int, int]]:
        """Every rank that holds the sample ``row``, and its place there."""
        return self._places[row]

    def own(self, rank: int) -> list[tuple[int, int]]:
        """The samples of which ``rank`` is the source, each with its place: on all ranks together, each sample once."""
        return [(row, place) for place, row in enumerate(self.held[rank]) if self.source(row) == (rank, place)]


@dataclass(frozen=True)
class Exchange:
    """What one rank sends and gets: the places of what it sends, rank after rank, and how many samples go and come.

    ``order``: where among what comes, rank after rank, is each sample that it wanted.
    """

    places: list[int]
    goes: list[int]
    comes: list[int]
    order: list[int]


def plan_exchange(holders: Holders, wanted: Rows, rank: int) -> Exchange:
    """The part of ``rank`` in bringing each rank the samples ``wanted`` of it. Takes as long as ``wanted`` is."""
    leaves: list[list[int]] = []
    for rows in wanted:
        sources = [holders.source(row) for row in rows]
        leaves.append([place for source, place in sources if source == rank])
    mine = [holders.source(row)[0] for row in wanted[rank]]
    comes = [0] * len(wanted)
    for source in mine:
        comes[source] += 1
    arrives = sorted(range(len(mine)), key=mine.__getitem__)  # stable: rank after rank
    order = [0] * len(mine)
    for position, place in enumerate(arrives):
        order[place] = position
    return Exchange([place for places in leaves for place in places], [len(places) for places in leaves], comes, order)


def run_exchange(plan: Exchange, tensors: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Of each of ``tensors`` [n, ...], on one device, the samples that this rank wanted. One collective for all of them.

    ``group``: the ranks that the plan is for; all where it is None.
    """
    device = tensors[0].device
    places, order = (send(torch.tensor(index, dtype=torch.int64), device) for index in (plan.places, plan.order))
    # as bytes: gloo does not know every dtype, and tensors of several go together
    rows = [tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in tensors]
    sent = [part.index_select(0, places).contiguous().view(torch.uint8) for part in rows]
    widths = [part.shape[1] for part in sent]
    joint = sent[0] if len(sent) == 1 else torch.cat(sent, 1)
    size = joint.shape[1]
    got = joint.new_empty(len(plan.order) * size)
    dist.all_to_all_single(got, joint.view(-1), [n * size for n in plan.comes], [n * size for n in plan.goes], group=group)
    sorted_ = got.view(len(plan.order), size).index_select(0, order)
    parts = [sorted_] if len(widths) == 1 else [part.contiguous() for part in torch.split(sorted_, widths, 1)]
    return [
        part.view(tensor.dtype).view(len(plan.order), *tensor.shape[1:]) for part, tensor in zip(parts, tensors, strict=True)
    ]
