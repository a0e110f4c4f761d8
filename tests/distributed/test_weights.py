"""Ranks read weights block by block, and have what a rank has that reads them whole; one of each machine goes first."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrun import torchrun

from flowfactory.testing.tiny_checkpoints import flux_transformer

pytestmark = pytest.mark.distributed
COUNT = 2


@pytest.fixture(scope="module")
def found(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    transformer = flux_transformer(8, (2, 2), (2, 16), 32, 32, axes_dims_rope=(4, 6, 6))
    transformer.save_pretrained(folder / "float32")
    transformer.to(torch.bfloat16).save_pretrained(folder / "bf16")
    command = torchrun(COUNT, Path(__file__).with_name("weights_rank.py"), folder)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [json.loads((folder / f"found{rank}.json").read_text()) for rank in range(COUNT)]


CASES = ["full of float32", "full of bf16", "lora of float32", "lora of bf16", "lora of bf16 in bf16"]


@pytest.mark.parametrize("case", CASES)
def test_divided_block_by_block_they_are_those_of_a_whole_reading(case: str, found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank[case]["sharded"]
        assert rank[case]["same"]


@pytest.mark.parametrize("case", CASES)
def test_a_rank_has_one_block_whole_and_keeps_its_share_alone(case: str, found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank[case]["blocks"] == 4
        assert rank[case]["most"] == 1
        assert rank[case]["held"] == 4 / COUNT, "no shard is a view of a whole weight"


def test_the_first_rank_of_a_machine_goes_first_and_its_failure_is_everyones(found: list[dict[str, Any]]) -> None:
    first, other = (rank["in turn"] for rank in found)
    assert [first["found"], other["found"]] == ["0 True", "1 False"]
    assert first["ends"] <= other["begins"]
    assert first["told"] == other["told"] == "rank 0 cannot"
    assert first["tried"]
    assert not other["tried"]
