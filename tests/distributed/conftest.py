"""Ranks for the tests: real processes, started as a user's are."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torchrun import torchrun

HERE = Path(__file__).parent
Run = Callable[..., None]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    shared = str(HERE.parent / "shared")
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "FLOWFACTORY_CACHE": str(tmp_path_factory.mktemp("cache")),
        "PYTHONPATH": os.pathsep.join([shared, os.environ.get("PYTHONPATH", "")]),
    }


@pytest.fixture(scope="session")
def together(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train ``configs`` in turn on ``count`` ranks; the weights of each are then in its run directory."""

    def run(count: int, configs: list[Mapping[str, Any]]) -> None:
        file = tmp_path_factory.mktemp("configs") / "configs.json"
        file.write_text(json.dumps(configs))
        command = torchrun(count, HERE / "together.py", file)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]

    return run
