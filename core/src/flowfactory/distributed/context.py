"""Ranks that share each forward of the same samples, every one a part of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from flowfactory.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from flowfactory.config.schema import DistributedConfig


@dataclass(frozen=True)
class Context:
    """This rank's place among the ``count`` that share a forward.

    ``within``: these. ``across``: the ranks of the same place in every such group, of which each has samples of its own.
    """

    rank: int
    count: int
    within: ProcessGroup | None = None
    across: ProcessGroup | None = None

    def swap(self, parts: Tensor) -> Tensor:
        """[count, ...], the i-th from rank i, where the i-th of every rank's ``parts`` [count, ...] is for rank i."""
        parts = parts.contiguous()
        found = torch.empty_like(parts)
        dist.all_to_all_single(found, parts, group=self.within)
        return found

    def collect(self, tensor: Tensor) -> Tensor:
        """[count, ...], every rank's ``tensor``, all of one shape."""
        tensor = tensor.contiguous()
        found = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(found, tensor, group=self.within)
        return torch.stack(found)

    def own_part(self, tensor: Tensor, dim: int) -> Tensor:
        """This rank's part of ``tensor`` along ``dim``. UserError: it cannot be divided evenly."""
        if tensor.shape[dim] % self.count:
            raise UserError(
                f"distributed.context {self.count} does not divide the {tensor.shape[dim]} tokens of a forward; "
                "choose another size of what is drawn and of pictures that are given, or another distributed.context"
            )
        return tensor.chunk(self.count, dim)[self.rank]


def check_count(config: DistributedConfig, count: int) -> None:
    """UserError: ``count`` ranks cannot be divided into groups that share a forward."""
    if count % config.context:
        ranks = f"{count} rank{'s' if count > 1 else ''}"
        raise UserError(
            f"distributed.context {config.context} does not divide {ranks}; start a multiple of it (--nproc), or set it lower"
        )


def make_context(config: DistributedConfig, rank: int, count: int) -> Context | None:
    """The groups that the config says, of ranks that follow one another; None where each rank has forwards of its own.

    A joint work of the ranks. UserError: see :func:`check_count`.
    """
    check_count(config, count)
    size = config.context
    if size == 1:
        return None
    timeout = timedelta(minutes=config.timeout)
    neighbours = [list(range(start, start + size)) for start in range(0, count, size)]
    columns = [list(range(place, count, size)) for place in range(size)]
    within, _ = dist.new_subgroups_by_enumeration(neighbours, timeout=timeout)  # type: ignore[no-untyped-call]
    across, _ = dist.new_subgroups_by_enumeration(columns, timeout=timeout)  # type: ignore[no-untyped-call]
    return Context(rank % size, size, within, across)
