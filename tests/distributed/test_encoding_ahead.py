"""Two ranks that encode prompts as training comes to them learn what they learn where all are encoded at first."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny_flux
import torch
from safetensors.torch import load_file
from torchrun import torchrun

from flowfactory.runs.directory import RunDirectory

NOT_TOLD = ("seconds/", "peak_memory_mb")


def config(folder: Path, ahead: str | int) -> dict[str, Any]:
    """Of a run below ``folder``, with a checkpoint of its own, so that it finds nothing of another in the cache."""
    folder.mkdir()
    (folder / "prompts.txt").write_text("".join(f"a {'very ' * n}small cat\n" for n in range(9)))
    (folder / "heldout.txt").write_text("a dog\n")
    return {
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


@pytest.mark.distributed
def test_two_ranks_learn_the_same_whenever_prompts_are_encoded(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "configs.json").write_text(json.dumps([config(tmp_path / "whole", "all"), config(tmp_path / "parts", 4)]))
    command = torchrun(2, Path(__file__).parent / "together.py", tmp_path / "configs.json")
    own = environment | {"FLOWFACTORY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    whole, parts = tmp_path / "whole/run", tmp_path / "parts/run"
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
