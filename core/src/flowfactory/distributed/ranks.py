"""Ranks: the processes that do a run's work together, what they tell one another, and how they share its weights."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from flowfactory import stored_weights
from flowfactory.distributed.partition import Rows
from flowfactory.errors import RunError, UserError

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
WAIT = 0.1  # seconds between two looks at the store


@dataclass(frozen=True)
class Ranks:
    """This process's place among ``count``; alone, it does all the work and every exchange is with itself.

    ``mesh`` has the dimensions replicate and shard, or shard alone; None where every rank holds whole weights.
    ``local`` counts the ranks of this machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    mesh: DeviceMesh | None = None
    offload: bool = False

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for all: it alone prints, and writes what is not its own share."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, which can be pickled, in the order of the ranks."""
        if self.count == 1:
            return [value]
        found: list[T] = [value] * self.count
        dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: T) -> T:
        """The leading rank's ``value``."""
        if self.count == 1:
            return value
        found = [value]
        dist.broadcast_object_list(found, src=0)
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
                    failure = error
            if mine:
                _meet(key, self.rank, first)
            for told in self.gather(failure):  # the others would wait for what never comes
                if told is not None:
                    raise told
        return result

    def agree(self, kinds: Sequence[K]) -> Sequence[K]:
        """``kinds`` where ranks run on their own; the kinds of all ranks in one order where a forward is a joint work."""
        if self.mesh is None or self.count == 1:
            return kinds
        own = sorted(kinds, key=repr)
        digest = hashlib.blake2b(repr(own).encode(), digest_size=7).digest()
        mine = torch.tensor([int.from_bytes(digest, "little")])
        digests = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(digests, mine)
        if all(torch.equal(other, mine) for other in digests):
            return own
        return sorted(set().union(*self.gather(own)), key=repr)

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Make of each of ``tensors`` the sum over the ranks, in place."""
        if self.count == 1 or not tensors:
            return
        for same in _by_dtype(tensors):
            flat = torch.cat([tensor.flatten() for tensor in same])
            dist.all_reduce(flat)
            torch._foreach_copy_(same, [part.view_as(own) for own, part in zip(same, _parts(flat, same), strict=True)])

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """The L2 norm of ``tensors``, of which each rank gives its own shards where weights are sharded."""
        own = torch.nn.utils.get_total_norm(tensors)
        if self.mesh is None or self.mesh["shard"].size() == 1:
            return own
        squared = own.double().square()
        dist.all_reduce(squared, group=self.mesh["shard"].get_group())
        return squared.sqrt().to(own.dtype)

    def exchange(self, tensor: Tensor, held: Rows, wanted: Rows) -> Tensor:
        """The samples ``wanted[rank]`` [n, ...], where ``tensor`` holds the samples ``held[rank]`` of this rank, in order.

        Every rank calls it with the same ``held`` and ``wanted``. What several ranks hold comes from the first of them.
        """
        holder: dict[int, tuple[int, int]] = {}
        for rank, rows in enumerate(held):
            for place, row in enumerate(rows):
                holder.setdefault(row, (rank, place))
        mine = wanted[self.rank]
        if self.count == 1:
            return tensor[[holder[row][1] for row in mine]]
        leaves = [[holder[row][1] for row in rows if holder[row][0] == self.rank] for rows in wanted]
        sources = [holder[row][0] for row in mine]
        arrives = sorted(range(len(mine)), key=sources.__getitem__)  # rank after rank
        size = tensor[:1].numel() * tensor.element_size()
        order = [place for places in leaves for place in places]
        # as bytes: gloo does not know every dtype
        sent = tensor[order].contiguous().view(-1).view(torch.uint8)
        got = sent.new_empty(len(mine) * size)
        comes = [sources.count(rank) * size for rank in range(self.count)]
        dist.all_to_all_single(got, sent, comes, [len(places) * size for places in leaves])
        return got.view(tensor.dtype).view(len(mine), *tensor.shape[1:])[torch.tensor(arrives).argsort()]

    def shard_module(self, module: nn.Module, blocks: Sequence[nn.Module], dtype: torch.dtype) -> None:
        """Divide the weights of ``module`` over the ranks, its ``blocks`` one by one; forwards compute in ``dtype``.

        UserError: it cannot be divided.
        """
        from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        assert self.mesh is not None
        # that what a block returns is a view matters to who changes it in place, as no model here does
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        on_cuda = self.mesh.device_type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=on_cuda) if self.offload else OffloadPolicy()
        half = None if dtype == torch.float32 else dtype
        # inputs stay as they are, as without sharding: times would lose digits, and autocast rounds what may be rounded
        precision = MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=False)
        try:
            for part in (*blocks, module):
                stored_weights.place(part)  # copied into shards at once: no rank has more whole than a block
                # the root too, which would otherwise stay whole after a forward without gradients
                fully_shard(part, mesh=self.mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=True)
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


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    return list(kinds.values())


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.split(flat, [tensor.numel() for tensor in like]))
