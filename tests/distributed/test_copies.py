"""Two copies of the weights, each of two ranks: what is exchanged for an update, and what comes of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from torchrun import torchrun

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def found(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the four ranks found."""
    file = tmp_path_factory.mktemp("copies") / "found.json"
    command = torchrun(4, Path(__file__).with_name("copies_rank.py"), file)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    every: list[dict[str, Any]] = json.loads(file.read_text())
    return every


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_gradient_is_that_of_one_process(found: list[dict[str, Any]], kind: str) -> None:
    for rank in found:
        assert rank[kind]["names"]
        assert rank[kind]["apart"] < 1e-6
        assert rank[kind]["norm"] == pytest.approx(1, abs=1e-6)
        assert rank[kind]["left"] == 0


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_copies_exchange_their_gradients_once_an_update_of_three_micro_batches(found: list[dict[str, Any]], kind: str) -> None:
    for rank in found:
        # the gradients over the copies, and the square of their norm over the ranks of one; then who yielded how much
        assert rank[kind]["counts"] == {"all_reduce of 2": 1 + 1, "all_gather_object of 4": 2}


def test_the_groups_of_a_mesh_wait_as_long_as_the_config_says(found: list[dict[str, Any]]) -> None:
    assert [rank["members"] for rank in found] == [[[0, 1], [0, 2]], [[0, 1], [1, 3]], [[2, 3], [0, 2]], [[2, 3], [1, 3]]]
    assert [rank["minutes"] for rank in found] == [[7, 7]] * 4


def test_all_ranks_come_to_what_the_leading_one_finds_for_the_smallest_card(found: list[dict[str, Any]]) -> None:
    assert [rank["settled"]["sizes"] for rank in found] == [[[2, 2], [4, 1]]] * 4
    assert [rank["settled"]["asked"] for rank in found] == [[[4, 9], [4, 10]], [], [], []]
    assert [rank["settled"]["said"] for rank in found] == [
        [
            "distributed.shard: auto is 2, weights are divided over the ranks of a node, in 2 copies: a card has 9",
            "distributed.shard: auto is 1, each rank holds whole weights: a card has 10",
        ],
        *[[]] * 3,
    ]
