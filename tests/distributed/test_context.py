"""Ranks that share a forward, each a part of its tokens, get the gradients of one that has them all."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import tiny_flux
import torch
from saved import tensors
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


@pytest.mark.distributed
def test_a_run_is_resumed_with_another_context(environment: dict[str, str], tmp_path: Path) -> None:
    checkpoint = tiny_flux.flux1(tmp_path / "flux1", dev=False)
    (tmp_path / "train.txt").write_text("a red circle\na blue square\na green cat\n")

    def train(folder: str, context: int, iterations: int, resume: bool = False) -> None:
        config = {
            "model": {"name": "flux1", "path": str(checkpoint), "train": {"lora": {"rank": 2}}, "max_sequence_length": 16},
            "algorithm": {"name": "grpo", "clip_range": 0.05},
            "rewards": {"small": {"name": "jpeg-size"}},
            "prompts": {"train": str(tmp_path / "train.txt")},
            "sampling": {
                "groups": 2,
                "group_size": 4,
                "size": [32, 32],
                "steps": 3,
                "batch_size": 4,
                "dynamics": {"name": "flow-sde", "noise_level": 0.7},
            },
            "training": {"iterations": iterations, "batch_size": 4, "optimizer": {"lr": 1e-3, "eps": 1e-4}},
            "distributed": {"context": context},
            "output": {"dir": str(tmp_path / folder), "checkpoint_every": 1},
            "device": "cpu",
        }
        jobs = tmp_path / "jobs.json"
        jobs.write_text(json.dumps([{"do": "train", "config": config, "resume": resume}]))
        command = torchrun(2, Path(__file__).with_name("saving.py"), jobs)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]

    train("resumed", 1, 1)
    train("resumed", 2, 2, resume=True)
    train("whole", 2, 2)
    found, expected = (tensors(tmp_path / folder / "checkpoints" / "000002") for folder in ("resumed", "whole"))
    assert found.keys() == expected.keys()
    weights = [name for name in found if not name.startswith("random/")]
    assert max(float((found[name] - expected[name]).abs().max()) for name in weights) < 2e-5
    # what a plugin draws from torch's own generator is the same where ranks have the same samples
    for state in (found, expected):
        assert torch.equal(state["random/0"], state["random/1"])
    assert not torch.equal(*(tensors(tmp_path / "resumed" / "checkpoints" / "000001")[f"random/{rank}"] for rank in (0, 1)))
