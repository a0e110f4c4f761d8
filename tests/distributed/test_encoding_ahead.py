"""Two ranks that encode prompts as training comes to them learn what they learn where all are encoded at first."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import tiny_flux
import torch
from safetensors.torch import load_file
from torchrun import torchrun

from flowfactory.runs.directory import RunDirectory

NOT_TOLD = ("seconds/", "peak_memory_mb")


def run(folder: Path, ahead: str | int, environment: dict[str, str]) -> Path:
    """The run directory of two ranks, with a cache of its own."""
    folder.mkdir()
    (folder / "prompts.txt").write_text("".join(f"a {'very ' * n}small cat\n" for n in range(9)))
    (folder / "heldout.txt").write_text("a dog\n")
    raw = {
        "model": {
            "name": "flux1",
            "path": str(tiny_flux.flux1(folder / "flux1")),
            "train": {"lora": {"rank": 2, "alpha": 4}},
            "max_sequence_length": 16,
        },
        "algorithm": {"name": "nft", "timesteps": {"name": "uniform", "count": 2}},
        "rewards": {"small": {"name": "jpeg-size"}},
        "prompts": {
            "train": str(folder / "prompts.txt"),
            "heldout": str(folder / "heldout.txt"),
            "encode_ahead": ahead,
        },
        "sampling": {"groups": 2, "group_size": 4, "size": [16, 16], "steps": 2, "batch_size": 4, "dynamics": "ode"},
        "training": {"iterations": 4, "batch_size": 4, "optimizer": {"lr": 1e-3, "eps": 1e-4}},
        "output": {"dir": str(folder / "run"), "checkpoint_every": 100},
        "device": "cpu",
    }
    (folder / "configs.json").write_text(json.dumps([raw]))
    command = torchrun(2, Path(__file__).parent / "together.py", folder / "configs.json")
    own = environment | {"FLOWFACTORY_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder / "run"


def test_two_ranks_learn_the_same_whenever_prompts_are_encoded(environment: dict[str, str], tmp_path: Path) -> None:
    whole, parts = run(tmp_path / "whole", "all", environment), run(tmp_path / "parts", 4, environment)
    one, other = (RunDirectory(folder).records() for folder in (whole, parts))
    assert [record["iteration"] for record in other if "seconds/encode" in record] == [3]
    kept = [
        [{key: value for key, value in record.items() if not key.startswith(NOT_TOLD)} for record in records]
        for records in (one, other)
    ]
    assert kept[0] == kept[1]
    expected, found = (load_file(folder / "weights.safetensors") for folder in (whole, parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
