"""Ranks that share a forward, each a part of its tokens, get the gradients of one that has them all."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from torchrun import torchrun

WAYS = ("full", "lora", "checkpointed", "sharded")
KINDS = ("flux", "flux2", "qwen", "wan", "wan, a time a token", "wan, with a picture")
TWO = [*((kind, "full", 2) for kind in KINDS), *(("flux", way, 2) for way in WAYS[1:]), ("wan", "lora", 2)]
FOUR = [
    *((kind, way, 4) for kind in KINDS for way in WAYS),
    *((kind, way, 2) for kind in KINDS for way in WAYS),  # two pairs, each with samples of its own
]


def compared(
    environment: dict[str, str], folder: Path, count: int, cases: list[tuple[str, str, int]]
) -> list[dict[str, float]]:
    command = torchrun(count, Path(__file__).with_name("context_rank.py"), folder / "found.json", json.dumps(cases))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found: list[dict[str, float]] = json.loads((folder / "found.json").read_text())
    return found


def check(case: tuple[str, str, int], found: dict[str, float]) -> None:
    assert found["names"], case
    assert found["output"] < 1e-5, (case, found)
    assert found["apart"] < 1e-5, (case, found)
    assert found["each"] < 3e-5, (case, found)
    assert found["same"], case
    assert found["replayed"] == 0, (case, found)


def test_two_ranks_that_divide_tokens_get_the_gradients_of_one(environment: dict[str, str], tmp_path: Path) -> None:
    for case, found in zip(TWO, compared(environment, tmp_path, 2, TWO), strict=True):
        check(case, found)


@pytest.mark.distributed
def test_four_ranks_that_divide_tokens_get_the_gradients_of_one(environment: dict[str, str], tmp_path: Path) -> None:
    for case, found in zip(FOUR, compared(environment, tmp_path, 4, FOUR), strict=True):
        check(case, found)


@pytest.mark.distributed
def test_divided_tokens_are_rounded_as_whole_ones_are(environment: dict[str, str], tmp_path: Path) -> None:
    cases = [(kind, "bf16", 2) for kind in ("flux", "qwen", "wan")]
    for case, found in zip(cases, compared(environment, tmp_path, 2, cases), strict=True):
        assert found["names"], case
        assert found["output"] < 2e-2, (case, found)
        assert found["apart"] < 2e-2, (case, found)
        assert found["replayed"] == 0, (case, found)
