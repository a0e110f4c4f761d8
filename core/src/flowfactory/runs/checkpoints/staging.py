"""Copies in host memory of what is to be written, so that training can go on while it is."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowfactory.runs.checkpoints.files import Stored
from flowfactory.runs.checkpoints.shards import Rows, entry_of, which_rows
from flowfactory.runs.checkpoints.tensor_file import Entry, in_order, write_tensors

SMALL, TOGETHER = 2**16, 2**24
"""Bytes of a tensor that is packed with others before it is copied, and of such a pack, whose memory is taken on the device."""


@dataclass(frozen=True)
class StagedShard:
    """A shard that is to be written: its numbers are one piece of memory, however many tensors they are of."""

    entries: Sequence[Entry]
    numbers: Tensor
    metadata: dict[str, str]

    def write(self, file: Path) -> Stored:
        """Write it to a new ``file``, onto the disk. OSError: it cannot be."""
        return write_tensors(file, self.entries, [self.numbers], self.metadata)


def stages_pinned(device: str) -> bool:
    """Whether what is on a kind of device is copied to memory that the system may not move: the device copies there by itself.

    Pinning takes a while, so such memory is kept from one checkpoint to the next.
    """
    return device == "cuda"


class Staging:
    """Owner of the host memory that shards are copied to. What it made before may be used again: it must be written by then."""

    def __init__(self) -> None:
        self._pinned: dict[str, Tensor] = {}

    def stage(self, role: str, parts: Sequence[Rows]) -> StagedShard:
        """A copy of ``parts`` as the shard that they are to be."""
        tensors = {part.name: part.tensor for part in parts}
        entries = in_order(map(entry_of, parts))
        devices = {tensor.device for tensor in tensors.values() if stages_pinned(tensor.device.type)}
        numbers = self._memory(role, sum(entry.bytes for entry in entries), bool(devices))
        start = 0
        for pack in packs([tensors[entry.name] for entry in entries]):
            end = start + sum(tensor.nbytes for tensor in pack)
            flat = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in pack]
            # one copy for each pack: thousands of small ones would take their time each
            numbers[start:end].copy_(flat[0] if len(flat) == 1 else torch.cat(flat), non_blocking=bool(devices))
            start = end
        for device in devices:
            torch.cuda.synchronize(device)
        return StagedShard(entries, numbers, which_rows(parts))

    def _memory(self, role: str, size: int, pinned: bool) -> Tensor:
        known = self._pinned.get(role)
        if known is not None and len(known) == size:
            return known
        memory = torch.empty(size, dtype=torch.uint8)
        if pinned and size and _pin(memory):
            self._pinned[role] = memory
        return memory


def packs(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """``tensors``, in order, those together that are small and on one device."""
    pack: list[Tensor] = []
    size = 0
    for tensor in tensors:
        fits = max(tensor.nbytes, size) <= TOGETHER - SMALL and tensor.nbytes <= SMALL
        if pack and not (fits and pack[0].nbytes <= SMALL and tensor.device == pack[0].device):
            yield pack
            pack, size = [], 0
        pack.append(tensor)
        size += tensor.nbytes
    if pack:
        yield pack


def _pin(memory: Tensor) -> bool:
    """Whether the system pinned ``memory`` where it is; torch's own allocator would round its size up to a power of two."""
    from torch.cuda._pin_memory_utils import pin_memory, unpin_memory

    address = memory.data_ptr()
    try:
        pin_memory(address, memory.nbytes)
    except RuntimeError:  # a limit on such memory: copies are slower without it, and right
        return False
    weakref.finalize(memory, unpin_memory, address).atexit = False  # what it would ask may be gone by then
    return True
