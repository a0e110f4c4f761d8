"""How far the weights have moved, from a sample of them: a copy of all would take as much memory as they do."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.distributed.sharding import local_shard
from flowfactory.flow.noise import generator

MOST = 1024
"""Weights of a tensor that are looked at. A norm of a million of them, of 250 tensors, is known to less than one percent."""


class Movement:
    """The distance of ``parameters`` from where they are now, which they began at, and from where :meth:`mark` was last called.

    Of a tensor of up to MOST weights all are looked at, which is exact. Of a larger one as many are, each of which stands for
    equally many others; they are the same however many ranks share the tensor.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], ranks: Ranks = ALONE) -> None:
        self._parameters, self._ranks = parameters, ranks
        self._places = {name: _own_places(name, parameter) for name, parameter in parameters.items()}
        self._start = self._marked = self._read()

    def mark(self) -> None:
        """Remember where the weights are now."""
        self._marked = self._read()

    def metrics(self) -> dict[str, float]:
        """``weights/moved``: the norm of the weights' change since they began, by their norm then. A joint work of the ranks.

        And ``weights/update``: the same since :meth:`mark`.
        """
        now = self._read()
        parts = [now - self._start, self._start, now - self._marked, self._marked]
        moved, start, updated, marked = self._ranks.norms([[part] for part in parts]).tolist()
        return _share("weights/moved", moved, start) | _share("weights/update", updated, marked)

    @torch.no_grad()
    def _read(self) -> Tensor:
        """What is looked at of the weights that this rank has, float32, times the root of how many each stands for."""
        parts = []
        for name, (places, root) in self._places.items():
            own = local_shard(self._parameters[name].detach())
            parts.append(own.flatten().index_select(0, places).float() * root)
        device = parts[0].device
        return torch.cat([part.to(device) for part in parts])


def _share(name: str, change: float, whole: float) -> dict[str, float]:
    return {name: change / whole} if whole else {}


def _own_places(name: str, parameter: Tensor) -> tuple[Tensor, float]:
    """Where this rank's shard of ``parameter`` has the weights that are looked at; the root of how many each stands for."""
    size = parameter.numel()
    if size <= MOST:
        places, root = torch.arange(size), 1.0
    else:
        places, root = torch.randint(size, (MOST,), generator=generator("movement", name)), math.sqrt(size / MOST)
    device = local_shard(parameter.detach()).device
    if not isinstance(parameter, DTensor):
        return places.to(device), root
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    width = math.prod(parameter.shape[1:])  # shards are of whole rows
    first = offset[0] * width if offset else 0
    mine = (places >= first) & (places < first + math.prod(shape))
    return (places[mine] - first).to(device), root
