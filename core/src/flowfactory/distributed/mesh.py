"""How many ranks divide the weights, and how many copies there are: the device mesh, and the device of each rank."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

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
    chosen = config.distributed
    replicate, shard = mesh_sizes(chosen, count)
    if shard == 1 and not chosen.offload:
        return Ranks(rank, count, local)
    device = resolve_device(config.device, local).type
    together = torch.arange(count).reshape(replicate, shard)
    # groups of our own making: those of init_device_mesh have torch's time-out, whatever the config says
    timeout = timedelta(minutes=chosen.timeout)
    group = _own_group(together, timeout)
    mesh = DeviceMesh.from_group(group, device, mesh_dim_names=("shard",))
    return Ranks(rank, count, local, mesh, chosen.offload, _own_group(together.T, timeout) if replicate > 1 else None)


def _own_group(rows: torch.Tensor, timeout: timedelta) -> dist.ProcessGroup:
    """The process group of this rank's row of ``rows``, which every rank makes together; of all where there is one row."""
    if len(rows) == 1 and dist.group.WORLD is not None:
        return dist.group.WORLD
    own, _ = dist.new_subgroups_by_enumeration(rows.tolist(), timeout=timeout)
    return own
