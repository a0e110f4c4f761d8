"""What the tests of core share: an environment of their own, the toy plugin, and ways to run it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import settings

from flowfactory.config import loading as configs
from flowfactory.config.schema import RunConfig
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.train import train
from flowfactory.training.setup import Run, prepare_run

TOY = Path(__file__).parent / "toy_plugin.py"
MATCH = Path(__file__).parent / "toy_match.py"
BASE: dict[str, Any] = {
    "model": {"name": "toy", "p": 0.1, "q": 0.2},
    "algorithm": {"name": "score", "pull": 0.1},
    "rewards": {"bright": {"name": "bright"}},
    "prompts": {"train": "train.txt", "heldout": "heldout.txt"},
    "sampling": {
        "groups": 4,
        "group_size": 4,
        "size": [4, 4],
        "steps": 4,
        "batch_size": 8,
        "dynamics": {"name": "flow-sde", "sde_steps": [0, 1, 2], "num_sde_steps": 2},
    },
    "training": {"iterations": 3, "updates": 2, "batch_size": 4, "optimizer": {"lr": 0.02}},
    "output": {"checkpoint_every": 2},
    "plugins": [str(TOY)],
    "device": "cpu",
    "seed": 7,
}

settings.register_profile("core", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("core")
torch.set_num_threads(1)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it; a mapping with a ``name`` replaces, None takes away."""
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), dict) and "name" not in value:
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other plugin, no other cache, one thread, wherever the tests are run."""
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toy() -> Path:
    """The one-file plugin."""
    return TOY


@pytest.fixture
def matching() -> Callable[..., dict[str, Any]]:
    """The change of the toy's config to the algorithm that brings its own times, with options."""

    def change(**options: Any) -> dict[str, Any]:
        return {"algorithm": {"name": "match", **options}, "plugins": [str(TOY), str(MATCH)]}

    return change


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the toy's config, with changes, and the prompts beside it."""

    def write(changes: Mapping[str, Any] | None = None, name: str = "config.yaml") -> Path:
        (tmp_path / "train.txt").write_text("red\nblue\ngreen\nyellow\nwhite\n")
        (tmp_path / "heldout.txt").write_text("black\norange\n")
        path = tmp_path / name
        path.write_text(yaml.safe_dump(merged(BASE, changes or {}), sort_keys=False))
        return path

    return write


@pytest.fixture
def load(config_file: Callable[..., Path], tmp_path: Path) -> Callable[..., RunConfig]:
    """The toy's config, with changes; its run directory is ``tmp_path / out``."""

    def resolve(changes: Mapping[str, Any] | None = None, out: str = "run", sets: Sequence[str] = ()) -> RunConfig:
        return configs.load(config_file(changes), sets, (), tmp_path / out)

    return resolve


@pytest.fixture
def prepared(load: Callable[..., RunConfig]) -> Callable[..., Run]:
    """The toy's run with its weights in place and nothing trained."""

    def make(changes: Mapping[str, Any] | None = None) -> Run:
        run = prepare_run(load(changes))
        run.assembly.hooks.run_started(run.info, run.policy)
        return run

    return make


@pytest.fixture
def trained(load: Callable[..., RunConfig]) -> Callable[..., RunDirectory]:
    """Trains the toy, with changes, in this process."""

    def finish(changes: Mapping[str, Any] | None = None, out: str = "run", resume: bool = False) -> RunDirectory:
        return train(load(changes, out), resume, say=lambda _: None)

    return finish


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts ``python -m flowfactory`` with arguments."""

    def begin(*arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flowfactory", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )

    return begin


@pytest.fixture
def command(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``python -m flowfactory`` with arguments to its end."""

    def finish(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        process = start(*arguments)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return finish


@pytest.fixture
def figures() -> Callable[[RunDirectory], list[dict[str, Any]]]:
    """The records of a run without what differs from one run to the next: seconds and memory."""

    def read(directory: RunDirectory) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in record.items() if not key.startswith("seconds/") and key != "peak_memory_mb"}
            for record in directory.records()
        ]

    return read


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: exit code, stdout, stderr."""
    from flowfactory.cli.main import main

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flowfactory", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call
