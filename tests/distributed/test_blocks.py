"""Blocks that are stored in fewer bits, computed again or compiled, divided over two ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed


def ranks(environment: dict[str, str], file: Path, *cases: str) -> dict[str, dict[str, float]]:
    group = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    program = [str(Path(__file__).with_name("blocks_rank.py")), str(file), *cases]
    command = [sys.executable, "-m", "torch.distributed.run", *group, *program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found: dict[str, dict[str, float]] = json.loads(file.read_text())
    return found


def test_two_ranks_get_the_gradients_of_one_from_stored_and_checkpointed_blocks(
    environment: dict[str, str], tmp_path: Path
) -> None:
    found = ranks(environment, tmp_path / "found.json", "nf4", "int8", "whole")
    for case, bytes_a_weight in (("nf4", 0.5), ("int8", 1), ("whole", 4)):
        assert found[case]["names"]
        assert found[case]["apart"] < 1e-5, case
        assert found[case]["replayed"] == 0, case
        assert found[case]["sharded"]
        assert found[case]["share"] == bytes_a_weight / 2, case
        assert found[case]["blocks"] == 2


def test_two_ranks_get_the_gradients_of_one_from_compiled_blocks(environment: dict[str, str], tmp_path: Path) -> None:
    found = ranks(environment | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}, tmp_path / "found.json", "compiled")
    assert found["compiled"]["apart"] < 1e-5
    assert found["compiled"]["replayed"] < 1e-5
