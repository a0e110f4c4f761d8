"""Tiny runs that are killed at seeded instants and resumed, and what is left of them compared with a run that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
TOY = HERE.parent / "core" / "toy_plugin.py"
SIGKILL = -9


LORA = {"lora": {"rank": 2, "alpha": 3}}


def write_config(folder: Path, iterations: int, train: Any = "full") -> Path:
    """All that a run does, in few iterations: evaluations, and several checkpoints of which some are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text("red\nblue\ngreen\nyellow\nwhite\n")
    (folder / "heldout.txt").write_text("black\norange\n")
    config = {
        "model": {"name": "net", "train": train},
        "algorithm": {"name": "score", "pull": 0.1},
        "rewards": {"bright": {"name": "marking"}},
        "prompts": {"train": "train.txt", "heldout": "heldout.txt"},
        "sampling": {
            "groups": 2,
            "group_size": 4,
            "size": [4, 4],
            "steps": 3,
            "batch_size": 4,
            "dynamics": {"name": "flow-sde", "sde_steps": [0, 1], "num_sde_steps": 1},
        },
        "training": {"iterations": iterations, "updates": 2, "batch_size": 4, "optimizer": {"lr": 0.02}},
        "evaluation": {"every": 2},
        "output": {"checkpoint_every": 2, "keep_last": 2, "trackers": ["marks"]},
        "plugins": [str(TOY), str(HERE / "marking_plugin.py")],
        "device": "cpu",
        "seed": 7,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class ForkServer:
    """The process that runs are forked from, and that has imported ``modules`` too."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "forked_runs.py", *modules],
            env={**os.environ, "FLOWFACTORY_PLUGINS": "", "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, config: Path, root: Path, resume: bool, kill: dict[str, Any] | None = None) -> dict[str, Any]:
        """Train and export in ``root``; how it ended, and its marks."""
        root.mkdir(parents=True, exist_ok=True)
        run, out = str(root / "run"), str(root / "out")
        asked = {
            "commands": [["run", str(config), "--out", run, *(["--resume"] if resume else [])], ["export", run, out]],
            "environment": {"FLOWFACTORY_CACHE": str(root / "cache"), "SOAK_ROOT": str(root)},
            "log": str(root / "log.txt"),
            "kill": kill,
        }
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def left_by(root: Path) -> dict[str, Any]:
    """What a run is for: the exported weights, the pictures and the metrics, without what differs from run to run."""
    files = [*(root / "out").rglob("*.safetensors"), *(root / "run" / "samples").rglob("*.*")]
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    figures = [{k: v for k, v in line.items() if not k.startswith("seconds/") and k != "peak_memory_mb"} for line in lines]
    checkpoints = sorted(path.name for path in (root / "run" / "checkpoints").iterdir() if path.name.isdecimal())
    return {
        # a file that a kill left unfinished has a dot before its name, and nobody reads it
        **{str(path.relative_to(root)): path.read_bytes() for path in sorted(files) if not path.name.startswith(".")},
        "metrics": figures,
        "checkpoints": checkpoints,
    }


def plan_kills(marks: list[list[Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` instants over all phases of a run with ``marks``: at any of their visits, and any time into them."""
    chance = random.Random(seed)
    spans: dict[str, list[float]] = {}
    for (begun, phase), (ended, _) in pairwise(marks):
        spans.setdefault(phase, []).append(ended - begun)
    phases = sorted(spans)
    chosen = []
    for i in range(count):
        phase = phases[i % len(phases)]
        visit = chance.randrange(len(spans[phase]))
        chosen.append({"phase": phase, "visit": visit + 1, "delay": chance.uniform(0, spans[phase][visit])})
    return chosen


@dataclass
class Tally:
    """Of each phase how many runs were killed in it, how many came to the same end, and what was off with the others."""

    killed: Counter[str] = field(default_factory=Counter)
    same: Counter[str] = field(default_factory=Counter)
    too_late: int = 0
    trouble: list[str] = field(default_factory=list)

    def table(self) -> str:
        """One line a phase."""
        rows = [f"{phase:<24}{self.killed[phase]:>8}{self.same[phase]:>18}" for phase in sorted(+self.killed)]
        total = f"{'all':<24}{self.killed.total():>8}{self.same.total():>18}"
        late = [f"{self.too_late} more had ended before"] if self.too_late else []
        return "\n".join([f"{'killed in':<24}{'kills':>8}{'resumed bitwise':>18}", *rows, total, *late, *self.trouble])


def kill_and_resume(folder: Path, count: int, iterations: int, seed: int, train: Any = "full") -> Tally:
    """Kill ``count`` runs, each at another instant, resume each and compare it with the run that nobody killed."""
    tally = Tally()
    config = write_config(folder, iterations, train)
    server = ForkServer([] if train == "full" else ["peft"])
    try:
        whole = server.run(config, folder / "whole", resume=False)
        assert whole["code"] == 0, (folder / "whole" / "log.txt").read_text()
        expected = left_by(folder / "whole")
        for i, kill in enumerate(plan_kills(whole["marks"], count, seed)):
            root = folder / f"{i:03d}"
            killed = server.run(config, root, resume=False, kill=kill)
            if killed["code"] != SIGKILL:
                tally.too_late += 1
            phase = killed["marks"][-2][1]
            tally.killed[phase] += killed["code"] == SIGKILL
            resumed = server.run(config, root, resume=True)
            problem = difference(expected, root) if resumed["code"] == 0 else f"exit code {resumed['code']}"
            if problem:
                tally.trouble.append(f"{root}: {kill}: {problem}")
            else:
                tally.same[phase] += killed["code"] == SIGKILL
                shutil.rmtree(root)
    finally:
        server.close()
    return tally


def difference(expected: dict[str, Any], root: Path) -> str | None:
    """What in ``root`` is not as ``expected``."""
    found = left_by(root)
    off = [key for key in sorted({*expected, *found}) if expected.get(key) != found.get(key)]
    return f"{', '.join(off[:5])} differ" if off else None
