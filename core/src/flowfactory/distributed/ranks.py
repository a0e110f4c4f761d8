"""Ranks: the processes that do a run's work together, what they tell one another, and how they share its weights."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from flowfactory.distributed.context import Context
from flowfactory.distributed.partition import Rows
from flowfactory.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Ranks:
    """This process's place among ``count``; alone, it does all the work and every exchange is with itself.

    ``mesh`` has the dimensions replicate and shard, or shard alone; None where every rank holds whole weights.
    ``local`` counts the ranks of this machine. ``context``: those that share each forward of the same samples, see
    :attr:`workers`. ``group``: the ranks that are counted here; all where it is None.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    mesh: DeviceMesh | None = None
    offload: bool = False
    context: Context | None = None
    group: ProcessGroup | None = None

    @property
    def workers(self) -> Ranks:
        """The ranks that samples are dealt to: one of each context, of the same place in it as this one.

        All places of a context do the same, so that whatever comes of it decides nothing for one of them alone. They share
        neither ``context`` nor the word: ``leads`` is for all ranks together.
        """
        if self.context is None:
            return self
        size = self.context.count
        return replace(self, rank=self.rank // size, count=self.count // size, context=None, group=self.context.across)

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

    def agree(self, kinds: Sequence[K]) -> Sequence[K]:
        """``kinds`` where ranks run on their own; the kinds of all ranks in one order where a forward is a joint work."""
        if self.mesh is None or self.count == 1:
            return kinds
        own = sorted(kinds, key=repr)
        digest = hashlib.blake2b(repr(own).encode(), digest_size=7).digest()
        mine = torch.tensor([int.from_bytes(digest, "little")])
        digests = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(digests, mine, group=self.group)
        if all(torch.equal(other, mine) for other in digests):
            return own
        return sorted(set().union(*self.gather(own)), key=repr)

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Make of each of ``tensors`` the sum over the ranks, in place."""
        if self.count == 1 or not tensors:
            return
        for same in _by_dtype(tensors):
            flat = torch.cat([tensor.flatten() for tensor in same])
            dist.all_reduce(flat, group=self.group)
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
        dist.all_to_all_single(got, sent, comes, [len(places) * size for places in leaves], group=self.group)
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
                # the root too, which would otherwise stay whole after a forward without gradients
                fully_shard(part, mesh=self.mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=True)
        except ValueError as error:
            raise UserError(f"distributed.shard: {' '.join(str(error).split())}; set it to 1 for this model") from error
        for part in module.modules():
            if isinstance(part, FSDPModule):  # gradients add up; the learner divides by the number of samples
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)


ALONE = Ranks()


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    return list(kinds.values())


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.split(flat, [tensor.numel() for tensor in like]))
