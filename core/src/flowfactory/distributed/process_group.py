"""Joining the process group of a run, and leaving it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from flowfactory.distributed import environment
from flowfactory.distributed.context import check_count
from flowfactory.distributed.mesh import Room, is_to_choose, make_ranks, mesh_sizes, resolve_device, settle
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.types import Say

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

LETTING_GO_SECONDS = 0.2
"""In which gloo's threads let go of the last tensors; one that wants the interpreter for it after its end aborts all."""


def _no_room(count: int, card: int) -> Room:
    return Room(False, "whether whole ones fit was not asked")


@contextmanager
def join_process_group(
    config: RunConfig, find_room: Callable[[int, int], Room] = _no_room, say: Say = lambda _: None
) -> Iterator[Ranks]:
    """This process's place in the group that was started, alone where none was.

    ``find_room`` and ``say``: see :func:`~flowfactory.distributed.mesh.settle`.
    UserError: the ranks cannot be divided as the config says, or there is no device for each.
    """
    found, chosen = environment.read_environment(os.environ), config.distributed
    count = found.world_size if found else 1
    mesh_sizes(chosen, count)  # before anything waits for anyone
    check_count(chosen, count)
    if count == 1 and not chosen.offload:
        yield ALONE
        return
    local = found.local_rank if found else 0
    device = resolve_device(config.device, local)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(minutes=chosen.timeout)
    if found and count > 1:
        os.environ.update(found.variables())  # where the scheduler has other names for them
        dist.init_process_group(backend, timeout=timeout)
    else:  # off-loading is fully_shard's, which wants a group even of one
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)  # type: ignore[attr-defined]
    rank = found.rank if found else 0
    if found and is_to_choose(chosen, device.type, count):
        card = torch.cuda.get_device_properties(device).total_memory
        chosen = settle(chosen, Ranks(rank, count, local), found.local_world_size, card, find_room, say)
        config = config.model_copy(update={"distributed": chosen})
    ranks = make_ranks(config, rank, count, local)
    yield ranks
    ranks.barrier()  # a rank that leaves early takes the connections of the others with it
    leave_process_group()


def leave_process_group() -> None:
    """Close the connections of this process to the other ranks, and wait until gloo's threads have let go of its tensors."""
    dist.destroy_process_group()
    time.sleep(LETTING_GO_SECONDS)
