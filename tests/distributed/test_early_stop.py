"""Held-out scores decide on several ranks what they decide on one: where a run ends, and which checkpoint is kept."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from torchrun import torchrun

from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.facts import read_facts

pytestmark = pytest.mark.distributed
HERE = Path(__file__).parent
SCORE = "eval/dark/mean"


def config(root: Path, out: str, **training: Any) -> dict[str, Any]:
    """Training is paid for brightness, and what is held out for darkness, so that each evaluation is worse."""
    (root / "train.txt").write_text("red\nblue\ngreen\nyellow\nwhite\n")
    (root / "heldout.txt").write_text("black\norange\n")
    return {
        "model": {"name": "net", "train": "full"},
        "algorithm": {"name": "score", "pull": 0.1},
        "rewards": {"bright": {"name": "bright"}},
        "prompts": {"train": str(root / "train.txt"), "heldout": str(root / "heldout.txt")},
        "sampling": {"groups": 4, "group_size": 4, "size": [4, 4], "steps": 4, "batch_size": 8, "dynamics": "flow-sde"},
        "training": {"iterations": 7, "updates": 2, "batch_size": 4, "optimizer": {"lr": 0.05}, **training},
        "evaluation": {"every": 1, "rewards": {"dark": {"name": "bright", "scale": -1.0}}},
        "output": {"dir": str(root / out), "checkpoint_every": 100, "keep_last": 1, "keep_best": True},
        "plugins": [str(HERE.parent / "core" / "toy_plugin.py")],
        "device": "cpu",
        "seed": 7,
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_stops_and_keeps_its_best_on_any_number_of_ranks(ranks: int, environment: dict[str, str], tmp_path: Path) -> None:
    stop = {"on": SCORE, "patience": 4}
    jobs = [
        {"do": "train", "config": config(tmp_path, "stopped", early_stop=stop)},
        {"do": "train", "config": config(tmp_path, "resumed", early_stop=stop, iterations=2)},
        {"do": "train", "config": config(tmp_path, "resumed", early_stop=stop), "resume": True},
    ]
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps(jobs))
    command = torchrun(ranks, HERE / "saving.py", file)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    for name in ("stopped", "resumed"):
        directory = RunDirectory(tmp_path / name)
        assert [record["iteration"] for record in directory.records()] == [0, 1, 2, 3, 4]
        assert sorted(int(path.name) for path in directory.checkpoints.glob("[0-9]*")) == [1, 4]
        end = read_facts(directory.facts)["end"]
        assert end["how"] == "finished"
        assert end["sentence"].startswith(f"stopped early after iteration 4: {SCORE} has not been above ")
        told = [json.loads((tmp_path / name / f"told-{rank}.json").read_text()) for rank in range(ranks)]
        assert told[0][-1] == end["sentence"]
        assert told[1:] == [[]] * (ranks - 1)  # the leading rank alone is heard
