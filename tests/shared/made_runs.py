"""Run directories as runs leave them, made without training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

CONFIG: dict[str, Any] = {
    "model": {"name": "toy"},
    "algorithm": {"name": "score"},
    "rewards": {"bright": {"name": "bright"}},
    "sampling": {"groups": 4, "group_size": 3},
    "training": {"iterations": 20},
    "seed": 7,
}


def make_run(
    path: Path,
    scores: Mapping[int, Mapping[str, float]],
    iterations: int = 20,
    config: Mapping[str, Any] | None = None,
    side: int = 8,
) -> Path:
    """The run directory ``path``; ``scores`` after an iteration are by prompt, of one picture each."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **(config or {})}))
    (path / "run.json").write_text(json.dumps({"versions": {"torch": "2"}, "end": {"how": "finished", "time": "2026-01-01"}}))
    lines = []
    for iteration in range(iterations + 1):
        record: dict[str, Any] = {"iteration": iteration}
        if iteration:
            record |= {
                "reward/bright/mean": 0.1 * iteration,
                "loss": 1.0 / iteration,
                "seconds/sample": 2.0,
                "seconds/update": 1.0,
            }
        if iteration in scores:
            values = list(scores[iteration].values())
            record |= {"eval/bright/mean": sum(values) / len(values), "eval/bright/std": 0.5, "eval/samples": len(values)}
            write_samples(path / f"samples/{iteration:06d}", scores[iteration], iteration, side)
        lines.append(json.dumps(record) + "\n")
    (path / "metrics.jsonl").write_text("".join(lines))
    return path


def write_samples(folder: Path, scores: Mapping[str, float], shade: int, side: int = 8) -> None:
    """A picture of one colour for each prompt of ``scores``."""
    folder.mkdir(parents=True)
    index = []
    for place, (prompt, score) in enumerate(scores.items()):
        Image.new("RGB", (side, side), (shade % 256, place, 9)).save(folder / f"{place:03d}.png")
        index.append({"file": f"{place:03d}.png", "prompt": prompt, "scores": {"bright": score}})
    (folder / "index.json").write_text(json.dumps(index))
