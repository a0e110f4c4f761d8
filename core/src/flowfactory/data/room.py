"""Whether what a run encodes fits on the disk of the cache, or else in memory."""

from __future__ import annotations

import os
from contextlib import suppress

from flowfactory.distributed.environment import read_environment


def judge_room(needed: int, free: int, memory: int) -> bool | None:
    """Whether ``needed`` bytes fit into the ``free`` ones of a disk; None where ``memory`` does not take the rest either."""
    return True if needed <= free else False if needed - free <= memory else None


def spare_memory() -> int:
    """Bytes of host memory that one rank may fill: its part of half of what can be had without swapping.

    Where the system does not tell that, of all there is.
    """
    found = read_environment(os.environ)
    return _available_memory() // 2 // (found.local_world_size if found else 1)


def _available_memory() -> int:
    with suppress(OSError, StopIteration), open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) * 1024
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2**62
