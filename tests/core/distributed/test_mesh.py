"""How many ranks divide the weights where the config leaves it open."""

from __future__ import annotations

from typing import Any

import pytest

from flowfactory.config.schema import DistributedConfig
from flowfactory.distributed.mesh import choose_sizes, describe_choice, is_to_choose


@pytest.mark.parametrize(
    ("nodes", "divided"),
    [
        ([8], (1, 8)),
        ([8, 8, 8, 8], (4, 8)),
        ([2, 2], (2, 2)),
        ([8, 4], (1, 12)),
        ([4, 4, 3], (1, 11)),
        ([1, 1, 1], (1, 3)),
    ],
)
def test_weights_are_divided_within_a_node_and_whole_where_they_fit(nodes: list[int], divided: tuple[int, int]) -> None:
    assert choose_sizes(nodes, whole_fit=False) == divided
    assert choose_sizes(nodes, whole_fit=True) == (sum(nodes), 1)


@pytest.mark.parametrize(
    ("options", "device", "count", "chosen"),
    [
        ({}, "cuda", 8, True),
        ({}, "cuda", 1, False),
        ({}, "cpu", 8, False),
        ({"shard": 4}, "cuda", 8, False),
        ({"replicate": 2}, "cuda", 8, False),
        ({"offload": True}, "cuda", 8, False),
    ],
)
def test_what_the_config_says_is_not_chosen(options: dict[str, Any], device: str, count: int, chosen: bool) -> None:
    assert is_to_choose(DistributedConfig.model_validate(options), device, count) == chosen


@pytest.mark.parametrize(
    ("nodes", "shard", "told"),
    [
        ([8, 8], 1, "is 1, each rank holds whole weights: why"),
        ([8], 8, "is 8, weights are divided over the ranks: why"),
        ([8, 8], 8, "is 8, weights are divided over the ranks of a node, in 2 copies: why"),
        (
            [8, 4],
            12,
            "is 12, weights are divided over the ranks; nodes have 8, 4 ranks, so none has a copy of its own: why",
        ),
    ],
)
def test_it_is_said_what_was_chosen_and_why(nodes: list[int], shard: int, told: str) -> None:
    assert describe_choice(nodes, shard, "why") == f"distributed.shard: auto {told}"
