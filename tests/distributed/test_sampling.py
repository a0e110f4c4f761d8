"""`flowfactory sample` and `eval` on several ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flowfactory.config import loading
from flowfactory.runs.train import train

pytestmark = pytest.mark.distributed
TOY = Path(__file__).parents[1] / "core" / "toy_plugin.py"


def test_two_ranks_draw_and_score_what_one_does(tmp_path: Path) -> None:
    """The run was told to divide its weights over more ranks than there are now."""
    (tmp_path / "prompts.txt").write_text("red\nblue\ngreen\n")
    config = {
        "model": {"name": "net", "train": "full"},
        "algorithm": {"name": "score"},
        "rewards": {"bright": {"name": "bright"}},
        "prompts": {"train": "prompts.txt", "heldout": "prompts.txt"},
        "sampling": {"groups": 2, "group_size": 2, "size": [4, 4], "steps": 3, "dynamics": {"name": "flow-sde"}},
        "evaluation": {"ema": {"name": "constant", "decay": 0.5}},
        "training": {"iterations": 1},
        "plugins": [str(TOY)],
        "device": "cpu",
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    run = tmp_path / "run"
    train(loading.load(str(file), (), (), run), say=lambda _: None)
    written = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(written | {"distributed": {"shard": 8}}))

    def told(*arguments: str) -> str:
        command = [sys.executable, "-m", "flowfactory", *arguments]
        environment = os.environ | {"FLOWFACTORY_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    pictures, scores = [], []
    for count in ("1", "2"):
        common = ["--trust", "--nproc", count]
        lines = told("sample", str(run), "red", "--count", "3", "--out", str(tmp_path / count), *common).splitlines()
        assert lines == [str(tmp_path / count / f"{i:03d}.png") for i in range(3)]
        pictures.append([Path(line).read_bytes() for line in lines])
        scores.append(json.loads(told("eval", str(run), *common)))
    assert pictures[0] == pictures[1]
    assert len(set(pictures[0])) == 3
    assert {key: pytest.approx(value, abs=1e-6) for key, value in scores[0].items() if key != "checkpoint"} == {
        key: value for key, value in scores[1].items() if key != "checkpoint"
    }
