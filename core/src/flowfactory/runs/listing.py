"""The runs below a folder: how far each is, how it ended, and the best score of its evaluations. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowfactory.checkpoint_names import FOLDER
from flowfactory.config.yaml import parse_yaml
from flowfactory.errors import UserError
from flowfactory.runs.best_score import Evaluated, evaluated, find_best, written_score
from flowfactory.runs.doctor.table import Table
from flowfactory.runs.facts import END, FACTS, LARGEST, UNDER_WAY
from flowfactory.runs.lock import is_held
from flowfactory.runs.metrics_file import MOST_BYTES, read_lines
from flowfactory.untrusted_files import Refused, parse_json, read_bytes

CONFIG, METRICS, LARGEST_CONFIG = "config.yaml", "metrics.jsonl", 2**19
DEEPEST, MOST_FOLDERS, MOST_RUNS = 4, 20_000, 1000
"""Levels of folders, how many folders are looked into, and how many runs are told of."""
STATES = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class RunState:
    """A run: its ``state`` in a word, the iterations ``done`` of those ``planned``, its best ``score`` by ``score_name``."""

    path: Path
    state: str
    done: int
    planned: int | None
    score_name: str | None
    score: Evaluated | None
    algorithm: str | None
    model: str | None

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        best = None
        if self.score is not None:
            best = {"name": self.score_name, "score": self.score.score, "iteration": self.score.iteration}
        told = {"run": str(self.path), "state": self.state, "done": self.done, "planned": self.planned, "best": best}
        return {**told, "algorithm": self.algorithm, "model": self.model}


def list_runs(folder: Path) -> list[RunState]:
    """The runs in ``folder`` and the folders below it, by their paths. UserError: there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; name the one that your run directories lie in")
    return [read_state(path) for path in find_runs(folder)]


def find_runs(folder: Path) -> list[Path]:
    """The run directories in ``folder``, itself among them, at most DEEPEST levels below it; links are not followed."""
    found: list[Path] = []
    level, seen = [folder], 0
    for _ in range(DEEPEST + 1):
        below: list[Path] = []
        for path in level:
            seen += 1
            if seen > MOST_FOLDERS or len(found) == MOST_RUNS:
                return sorted(found)
            if _is_run(path):
                found.append(path)
            else:
                below += _folders_in(path)
        level = below
    return sorted(found)


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() and any((path / name).exists() for name in (METRICS, FACTS, FOLDER))


def _folders_in(path: Path) -> Iterator[Path]:
    try:
        with os.scandir(path) as entries:
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # somebody else's
        return
    yield from (path / name for name in sorted(folders) if not name.startswith("."))


def read_state(path: Path) -> RunState:
    """What a run directory tells, of what can be read of it."""
    facts, config = _read(path / FACTS, LARGEST, _mapping), _read(path / CONFIG, LARGEST_CONFIG, _config)
    done, evaluations = _progress(path / METRICS)
    table = Table([], config, facts)
    name = written_score(config) or next((key for record in evaluations for key in record if key != "iteration"), None)
    planned = table.number("training.iterations")
    return RunState(
        path,
        _state(path, facts),
        done,
        int(planned) if planned is not None else None,
        name,
        find_best(evaluated(evaluations, name)) if name else None,
        _text(table.key("algorithm.name")),
        _text(table.key("model.name")),
    )


def _state(path: Path, facts: Mapping[str, Any]) -> str:
    """In a word: of a run whose end nobody wrote down, whether its process still lives."""
    if isinstance(facts.get(UNDER_WAY), str):
        return "running" if is_held(path) else "killed"
    end = facts.get(END)
    how = end.get("how") if isinstance(end, Mapping) else None
    return how if how in STATES else "not begun"


def _progress(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """The last iteration, and of each evaluation the means of its scores."""
    done, size, found = 0, 0, list[dict[str, Any]]()
    try:
        for line in read_lines(path):
            size += len(line.raw)
            if size > MOST_BYTES:
                break
            if line.record is None:
                continue
            done = max(done, line.record["iteration"])
            scores = {k: v for k, v in line.record.items() if k.startswith("eval/") and k.endswith("/mean")}
            if scores:
                found.append({"iteration": line.record["iteration"], **scores})
    except (OSError, Refused):
        pass
    return done, found


def _read(path: Path, limit: int, parse: Any) -> Mapping[str, Any]:
    try:
        found = parse(read_bytes(path, limit, within=path.parent))
    except (OSError, Refused, UserError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _mapping(content: bytes) -> Any:
    return parse_json(content)


def _config(content: bytes) -> Any:
    return parse_yaml(content.decode("utf-8", "replace"), CONFIG)


def _text(value: Any) -> str | None:
    return value[:40] if isinstance(value, str) else None
