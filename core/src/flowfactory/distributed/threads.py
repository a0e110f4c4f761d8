"""How many threads a rank computes with on the host, where the device is another."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from flowfactory.distributed.environment import read_environment
from flowfactory.distributed.rank_process import DEFAULT_THREADS


def choose_host_threads(device: str, cores: int, variables: Mapping[str, str]) -> int | None:
    """The rank's part of the ``cores`` of its machine; None where what is set already is to stay.

    On a CPU the number of threads changes how sums are rounded, so that it stays there; and where the user chose one, or
    another launcher did.
    """
    found = read_environment(variables)
    if device == "cpu" or found is None or not variables.get(DEFAULT_THREADS):
        return None
    return max(1, cores // found.local_world_size)


def use_host_threads(device: torch.device) -> None:
    """Have what is on the host computed with the rank's part of the cores, where ``device``, the run's, is no CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = choose_host_threads(device.type, cores, os.environ)
    if threads is not None:
        torch.set_num_threads(threads)
