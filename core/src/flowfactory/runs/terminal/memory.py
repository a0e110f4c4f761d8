"""How much memory a run holds at this moment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Memory(NamedTuple):
    """Bytes: in use now, by tensors of the device or by the process; the device's whole, where it is one."""

    used: int
    total: int | None = None


def memory_in_use(device: torch.device | None) -> Memory | None:
    """What tensors take on a CUDA ``device``, else what the process has resident; None where the system does not tell.

    Waits for no device: the allocator's own counters are asked.
    """
    if device is not None and device.type == "cuda":
        import torch

        return Memory(torch.cuda.memory_allocated(device), torch.cuda.get_device_properties(device).total_memory)
    try:
        with open("/proc/self/statm") as file:
            return Memory(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except OSError:
        return None
