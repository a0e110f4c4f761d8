"""A rank on a GPU computes on the host with its part of the cores."""

from __future__ import annotations

import pytest

from flowfactory.distributed.rank_process import DEFAULT_THREADS
from flowfactory.distributed.threads import choose_host_threads

RANKS = {"RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}
OURS = {DEFAULT_THREADS: "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("device", "cores", "variables", "threads"),
    [
        ("cuda", 64, RANKS | OURS, 16),
        ("cuda", 2, RANKS | OURS, 1),
        ("cpu", 64, RANKS | OURS, None),  # sums would be rounded otherwise
        ("cuda", 64, RANKS | {"OMP_NUM_THREADS": "2"}, None),
        ("cuda", 64, OURS, None),
    ],
)
def test_it_is_a_part_of_the_cores_unless_the_user_chose(
    device: str, cores: int, variables: dict[str, str], threads: int | None
) -> None:
    assert choose_host_threads(device, cores, variables) == threads
