"""Ranks: the processes that do a run's work together, what they tell one another, and how they share its weights."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from flowfactory import stored_weights
from flowfactory.device_copies import send
from flowfactory.distributed.context import Context
from flowfactory.distributed.exchange import Holders, plan_exchange, run_exchange
from flowfactory.distributed.partition import Rows
from flowfactory.errors import RunError, UserError, to_plain

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
WAIT = 0.1  # seconds between two looks at the store


@dataclass(frozen=True)
class Ranks:
    """This process's place among ``count``; alone, it does all the work and every exchange is with itself.

    ``mesh`` are the ranks that hold one copy of the weights together; None where every rank holds whole weights.
    ``replicas`` are those that hold the same part of other copies; None where there are none, or all hold whole weights.
    ``local`` counts the ranks of this machine. ``context``: those that share each forward of the same samples, see
    :attr:`workers`. ``group``: the ranks that are counted here; all where it is None.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    mesh: DeviceMesh | None = None
    offload: bool = False
    replicas: dist.ProcessGroup | None = None
    context: Context | None = None
    group: dist.ProcessGroup | None = None

    @property
    def copies(self) -> int:
        """How many copies of the weights there are, each of one rank or of several."""
        return self.count if self.mesh is None else self.count // self.mesh.size()

    @property
    def workers(self) -> Ranks:
        """The ranks that samples are dealt to: one of each context, of the same place in it as this one.

        All places of a context do the same, so that whatever comes of it decides nothing for one of them alone. They share
        neither weights nor the word: gradients are summed, and ``leads`` says who prints, among all ranks together.
        """
        if self.context is None:
            return self
        size = self.context.count
        return Ranks(self.rank // size, self.count // size, self.local, group=self.context.across)

    @property
    def speaks(self) -> bool:
        """Whether this rank does what its context is to do once, such as to have samples scored."""
        return self.context is None or self.context.rank == 0

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for all: it alone prints, and writes what is not its own share."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, which can be pickled, in the order of the ranks."""
        if self.count == 1:
            return [value]
        found: list[T] = [value] * self.count
        dist.all_gather_object(found, value, group=self.group)
        return found

    def broadcast(self, value: T) -> T:
        """The leading rank's ``value``."""
        if self.count == 1:
            return value
        found = [value]
        dist.broadcast_object_list(found, group=self.group, group_src=0)
        return found[0]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on some rank."""
        return any(self.gather(flag))

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.count > 1:
            self.gather(None)  # on the host, whatever the device

    def in_turn(self, work: Callable[[bool], T]) -> T:
        """What ``work(True)`` gives on the first rank of each machine and, once these are done, ``work(False)`` on the others.

        All ranks call it, and wait for as long as it takes. UserError, RunError: it failed on some rank.
        """
        if self.count == 1:
            return work(True)
        key = self.broadcast(f"flowfactory/in_turn/{uuid4().hex}")
        first = [rank for rank, local in enumerate(self.gather(self.local)) if local == 0]
        failure: Exception | None = None
        for mine in (True, False):
            if mine is (self.local == 0):
                try:
                    result = work(mine)
                except (UserError, RunError) as error:
                    failure = to_plain(error)
            if mine:
                _meet(key, self.rank, first)
            for told in self.gather(failure):  # the others would wait for what never comes
                if told is not None:
                    raise told
        return result

    def agree(self, kinds: Sequence[K]) -> Sequence[K]:
        """``kinds`` where ranks run on their own; those of all ranks of a copy, in one order, where it takes all to run."""
        if self.mesh is None or self.mesh.size() == 1:
            return kinds
        group = self.mesh.get_group()
        own = sorted(kinds, key=repr)
        digest = hashlib.blake2b(repr(own).encode(), digest_size=7).digest()
        mine = torch.tensor([int.from_bytes(digest, "little")])
        digests = [torch.empty_like(mine) for _ in range(self.mesh.size())]
        dist.all_gather(digests, mine, group=group)
        if all(torch.equal(other, mine) for other in digests):
            return own
        found: list[list[K]] = [own] * self.mesh.size()
        dist.all_gather_object(found, own, group=group)
        return sorted(set().union(*found), key=repr)

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Make of each of ``tensors``, this rank's part of what is shared as weights are, the sum over all copies, in place."""
        if self.copies == 1 or not tensors:
            return
        for same in _by_dtype(tensors):
            flat = torch.cat([tensor.flatten() for tensor in same])
            if self.mesh is not None:
                flat = flat.to(self.mesh.device_type)  # what is off-loaded travels between devices all the same
            dist.all_reduce(flat, group=self.replicas)
            torch._foreach_copy_(same, [part.view_as(own) for own, part in zip(same, _parts(flat, same), strict=True)])

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """The L2 norm of ``tensors``, of which each rank gives its own shards where weights are sharded."""
        return self.norms([tensors])[0]

    def norms(self, sets: Sequence[Sequence[Tensor]]) -> Tensor:
        """[n]: the L2 norm of each of n ``sets`` of tensors, as :meth:`norm`; one collective for all."""
        whole = torch.nn.utils.get_total_norm(sets[0])
        own = torch.stack([whole, *(torch.nn.utils.get_total_norm(tensors).to(whole) for tensors in sets[1:])])
        if self.mesh is None or self.mesh.size() == 1:
            return own
        squared = own.double().square()
        dist.all_reduce(squared, group=self.mesh.get_group())
        return squared.sqrt().to(own.dtype)

    def exchange(self, tensors: Sequence[Tensor], holders: Holders, wanted: Rows) -> list[Tensor]:
        """Of each of ``tensors`` the samples ``wanted[rank]`` [n, ...], where it holds the samples ``holders.held[rank]``.

        Every rank calls it with the same ``holders`` and ``wanted``. What several ranks hold comes from the first of them.
        """
        plan = plan_exchange(holders, wanted, self.rank)
        found: list[Tensor | None] = [None] * len(tensors)
        for device in dict.fromkeys(tensor.device for tensor in tensors):
            same = [i for i, tensor in enumerate(tensors) if tensor.device == device]
            if self.count == 1:
                index = send(torch.tensor(plan.places, dtype=torch.int64), device)
                moved = [tensors[i].index_select(0, index) for i in same]
            else:
                moved = run_exchange(plan, [tensors[i] for i in same], self.group)
            for i, tensor in zip(same, moved, strict=True):
                found[i] = tensor
        return [tensor for tensor in found if tensor is not None]

    def shard_module(
        self,
        module: nn.Module,
        blocks: Sequence[nn.Module],
        dtype: torch.dtype | None = None,
        exact: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Divide the weights of ``module`` over the ranks, its ``blocks`` one by one.

        Forwards get weights in ``dtype``, but for those whose names are ``exact``, and all as they are where it is None.
        UserError: it cannot be divided.
        """
        from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        assert self.mesh is not None
        # that what a block returns is a view matters to who changes it in place, as no model here does
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        on_cuda = self.mesh.device_type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=on_cuda) if self.offload else OffloadPolicy()
        # inputs stay as they are, as without sharding: times would lose digits, and autocast rounds what may be rounded
        as_they_are = MixedPrecisionPolicy(cast_forward_inputs=False)
        rounded = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False) if dtype else as_they_are
        # the root too, which would otherwise stay whole after a forward without gradients
        shard: Any = partial(fully_shard, mesh=self.mesh, offload_policy=offload, reshard_after_forward=True)
        try:
            for part in (*blocks, module):
                stored_weights.place(part)  # copied into shards at once: no rank has more whole than a block
                kept = {id(parameter) for name, parameter in module.named_parameters() if dtype and exact(name)}
                if not any(id(parameter) in kept for parameter in part.parameters()):
                    shard(part, mp_policy=rounded)
                    continue
                # weights that travel together have one dtype, so what stays exact travels for itself
                if others := [*_parts_without(part, kept)]:
                    shard(others, mp_policy=rounded)
                shard(part, mp_policy=as_they_are)
        except ValueError as error:
            raise UserError(f"distributed.shard: {' '.join(str(error).split())}; set it to 1 for this model") from error
        for part in module.modules():
            if isinstance(part, FSDPModule):  # gradients add up; the learner divides by the number of samples
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)


ALONE = Ranks()


def _meet(key: str, rank: int, awaited: Sequence[int]) -> None:
    """Be known at ``key`` to have come here, and wait until all ranks ``awaited`` have."""
    # on the store, since a collective gives up after distributed.timeout, and downloads take longer
    store = dist.distributed_c10d._get_default_store()
    store.set(f"{key}/{rank}", "here")
    wanted = [f"{key}/{other}" for other in awaited]
    while not store.check(wanted):
        time.sleep(WAIT)


def _parts_without(part: nn.Module, kept: Collection[int]) -> Iterator[nn.Module]:
    """The largest modules inside ``part`` that have weights, none of which is ``kept`` by its id, and that nobody divided."""
    from torch.distributed.fsdp import FSDPModule

    for child in part.children():
        if isinstance(child, FSDPModule) or not any(True for _ in child.parameters()):
            continue
        holds = any(id(parameter) in kept for parameter in child.parameters())
        if holds or isinstance(child, nn.ModuleList | nn.ModuleDict):  # which have no forward of their own
            yield from _parts_without(child, kept)
        else:
            yield child


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    return list(kinds.values())


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.split(flat, [tensor.numel() for tensor in like]))
