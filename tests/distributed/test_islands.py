"""What a class of diffusers keeps in float32 stays so where weights that train are divided and rounded to bf16."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from torchrun import torchrun

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def found(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("islands")
    command = torchrun(2, Path(__file__).with_name("islands_rank.py"), folder)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    result: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return result


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
def test_forwards_see_islands_in_float32_and_all_else_in_bf16(found: dict[str, Any], checkpointing: str) -> None:
    told = found[checkpointing]
    assert told["islands"] == 4 + 2 * 3 + 1  # the times' embedder; a table and the norm of each block; the table at the end
    assert told["exact"] == ["float32"]
    assert told["rounded"] == ["bfloat16"]


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
def test_two_ranks_compute_what_one_does(found: dict[str, Any], checkpointing: str) -> None:
    told = found[checkpointing]
    assert told["same"]
    assert told["gradients"]
    assert told["apart"] < 0.01  # gradients of bf16 weights are bf16 where they are divided, and float32 where autocast rounds
