"""How many ranks divide the weights, and how many copies there are: the device mesh, and the device of each rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.device_mesh import init_device_mesh

from flowfactory.distributed.context import make_context
from flowfactory.distributed.ranks import Ranks
from flowfactory.errors import UserError

if TYPE_CHECKING:
    from flowfactory.config.schema import DistributedConfig, RunConfig


def mesh_sizes(config: DistributedConfig, count: int) -> tuple[int, int]:
    """(replicate, shard) of ``count`` ranks. UserError: they cannot be divided so."""
    shard, replicate = config.shard, config.replicate
    if shard == "auto":
        shard = count if replicate == "auto" else count // replicate
    if replicate == "auto":
        replicate = count // shard
    if shard * replicate != count or shard < 1:
        raise UserError(
            f"distributed: shard {config.shard} and replicate {config.replicate} do not divide {count} "
            f"rank{'s' if count > 1 else ''}; their product must be that, and 'auto' is what is left"
        )
    return replicate, shard


def resolve_device(name: str, local: int = 0) -> torch.device:
    """The device; ``auto`` is CUDA where there is one, one a rank. UserError: no such device here."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{local % torch.cuda.device_count()}"  # a scheduler may show each rank one device, its own
    elif name == "auto":
        name = "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {name!r} is not available here: {str(error).splitlines()[0]}") from error
    return device


def make_ranks(config: RunConfig, rank: int, count: int, local: int) -> Ranks:
    """The ranks of the group that this process is in, dividing weights as the config says. UserError: they cannot."""
    replicate, shard = mesh_sizes(config.distributed, count)
    offload, mesh = config.distributed.offload, None
    if shard > 1 or offload:
        device = resolve_device(config.device, local).type
        mesh = init_device_mesh(device, (replicate, shard), mesh_dim_names=("replicate", "shard"))
        mesh = mesh["shard"] if replicate == 1 else mesh
    return Ranks(rank, count, local, mesh, offload, make_context(config.distributed, rank, count))
