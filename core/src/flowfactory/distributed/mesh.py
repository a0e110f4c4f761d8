"""How many ranks divide the weights, and how many copies there are: the device mesh, and the device of each rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from flowfactory.distributed.context import make_context
from flowfactory.distributed.ranks import Ranks
from flowfactory.errors import UserError
from flowfactory.types import Say

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


@dataclass(frozen=True)
class Room:
    """Whether whole weights fit on a rank's card beside everything else, and half a sentence that says why."""

    enough: bool
    why: str


def is_to_choose(config: DistributedConfig, device: str, count: int) -> bool:
    """Whether it is left to us how many of ``count`` ranks divide the weights: on a CPU, all do."""
    automatic = config.shard == config.replicate == "auto"
    return automatic and device == "cuda" and count > 1 and not config.offload


def choose_sizes(nodes: Sequence[int], whole_fit: bool) -> tuple[int, int]:
    """(replicate, shard) for ``nodes`` with so many ranks each.

    Whole weights where they fit, so that no forward waits for a block. Else a copy a node, whose ranks are close to one
    another; but one copy of all ranks where nodes have different numbers of them, or one each.
    """
    count = sum(nodes)
    if whole_fit:
        return count, 1
    if len(set(nodes)) == 1 and nodes[0] > 1:
        return len(nodes), nodes[0]
    return 1, count


def describe_choice(nodes: Sequence[int], shard: int, why: str) -> str:
    """The sentence about what :func:`choose_sizes` chose."""
    if shard == 1:
        return f"distributed.shard: auto is 1, each rank holds whole weights: {why}"
    uneven = f"; nodes have {', '.join(map(str, nodes))} ranks, so none has a copy of its own" if len(set(nodes)) > 1 else ""
    copies = f" of a node, in {sum(nodes) // shard} copies" if shard < sum(nodes) else ""
    return f"distributed.shard: auto is {shard}, weights are divided over the ranks{copies}{uneven}: {why}"


def settle(
    config: DistributedConfig, ranks: Ranks, here: int, card: int, find_room: Callable[[int, int], Room], say: Say
) -> DistributedConfig:
    """``config`` with numbers in place of auto, where :func:`is_to_choose`.

    ``here``: how many ranks this node has; ``card``: bytes of this rank's card.
    ``find_room`` is asked on the leading rank alone, with the number of ranks and the bytes of the smallest card. A joint work
    of the ranks.
    """
    told = ranks.gather((ranks.local, here, card))
    nodes = [size for local, size, _ in told if local == 0]
    if sum(nodes) != ranks.count:  # a launcher that numbers places otherwise
        nodes = [ranks.count]
    room = ranks.broadcast(find_room(ranks.count, min(size for *_, size in told)) if ranks.leads else None)
    assert room is not None
    replicate, shard = choose_sizes(nodes, room.enough)
    if ranks.leads:
        say(describe_choice(nodes, shard, room.why))
    return config.model_copy(update={"replicate": replicate, "shard": shard})


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
    context = make_context(chosen, rank, count)
    if shard == 1 and not chosen.offload:
        return Ranks(rank, count, local, context=context)
    device = resolve_device(config.device, local).type
    together = torch.arange(count).reshape(replicate, shard)
    # groups of our own making: those of init_device_mesh have torch's time-out, whatever the config says
    timeout = timedelta(minutes=chosen.timeout)
    group = _own_group(together, timeout)
    mesh = DeviceMesh.from_group(group, device, mesh_dim_names=("shard",))
    replicas = _own_group(together.T, timeout) if replicate > 1 else None
    return Ranks(rank, count, local, mesh, chosen.offload, replicas, context)


def _own_group(rows: torch.Tensor, timeout: timedelta) -> dist.ProcessGroup:
    """The process group of this rank's row of ``rows``, which every rank makes together; of all where there is one row."""
    if len(rows) == 1 and dist.group.WORLD is not None:
        return dist.group.WORLD
    own: dist.ProcessGroup
    own, _ = dist.new_subgroups_by_enumeration(rows.tolist(), timeout=timeout)  # type: ignore[no-untyped-call]
    return own
