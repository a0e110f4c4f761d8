"""The options of GRPO and its relatives, and the configs that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowfactory import testing
from flowfactory_grpo.grpo import GRPOConfig

every_algorithm = pytest.mark.parametrize("algorithm", ["grpo", "grpo-guard", "dppo"])
UNSTATED = Path(__file__).with_name("unstated.py")


def settings(folder: Path, name: str, dynamics: Any = "flow-sde", **options: Any) -> dict[str, Any]:
    sampling = {"dynamics": dynamics}
    return testing.settings(folder, {"name": name, **options}, plugins=[UNSTATED], sampling=sampling)


@every_algorithm
@pytest.mark.parametrize("dynamics", ["ode", {"name": "ode"}, None], ids=["name", "mapping", "left-out"])
def test_deterministic_dynamics_are_refused_with_the_reason(tmp_path: Path, algorithm: str, dynamics: Any) -> None:
    raw = settings(tmp_path, algorithm, dynamics)
    if dynamics is None:
        raw["sampling"].pop("dynamics")
    testing.check_refused(raw, rf"{algorithm} .*log-density.*'ode'.*deterministic.*choose .*flow-sde")


def test_the_command_line_refuses_deterministic_dynamics_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(settings(tmp_path, "grpo")))  # JSON is YAML
    command = [sys.executable, "-m", "flowfactory", "run", str(config), "--set", "sampling.dynamics=ode"]
    environment = {**os.environ, "FLOWFACTORY_PLUGINS": "grpo"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
    assert "deterministic" in ran.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("algorithm", ["grpo", "dppo"])
@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde", "cps", "unstated"])
def test_all_that_is_stochastic_is_accepted(tmp_path: Path, algorithm: str, dynamics: str) -> None:
    testing.begin(settings(tmp_path, algorithm, dynamics))


@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde", "cps"])
def test_grpo_guard_accepts_every_dynamics_of_core(tmp_path: Path, dynamics: str) -> None:
    testing.begin(settings(tmp_path, "grpo-guard", dynamics))


def test_grpo_guard_refuses_dynamics_whose_mean_may_bend_with_the_reason(tmp_path: Path) -> None:
    pattern = r"grpo-guard .*linear.*does not say so: choose flow-sde, dance-sde or cps"
    testing.check_refused(settings(tmp_path, "grpo-guard", "unstated"), pattern)


@pytest.mark.parametrize(
    ("algorithm", "key", "value"),
    [
        ("grpo", "clip_range", 0),
        ("grpo", "clip_range", -0.1),
        ("grpo", "kl", -1),
        ("grpo", "kl_form", "means"),
        ("grpo-guard", "clip_range", 0),
        ("grpo-guard", "kl", -1),
        ("grpo-guard", "kl_bound", 1e-6),
        ("dppo", "kl_bound", 0),
        ("dppo", "kl_bound", -1e-6),
        ("dppo", "kl", -1),
        ("dppo", "clip_range", 1e-4),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_one_line(tmp_path: Path, algorithm: str, key: str, value: Any) -> None:
    testing.check_refused(settings(tmp_path, algorithm, **{key: value}), rf"algorithm\.{key}")


def test_of_two_bounds_the_lesser_is_what_rounding_is_compared_with() -> None:
    config = GRPOConfig.model_validate({"clip_range": [2e-4, 1e-4]})
    assert config.clip_range == (2e-4, 1e-4)
    assert config.trust_region_bounds == {"ratio/max_deviation": ("clip_range", 1e-4)}
