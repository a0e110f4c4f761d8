"""Which steps GRPO records and trains on, which configs it refuses, and that it learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory import Canvas, SamplingPlan, UserError
from flowfactory.config.loading import validate
from flowfactory.flow.dynamics import FlowSDEConfig
from flowfactory.runs.train import train
from flowfactory.testing import check_algorithm
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import prepare_run
from flowfactory.types import Dynamics
from flowfactory_grpo.grpo import GRPOConfig


def sde(**options: Any) -> Any:
    return FlowSDEConfig.model_validate(options).build("dynamics")


@pytest.mark.parametrize("stochastic", [(), (0,), (1, 3)])
def test_just_the_stochastic_steps_are_recorded(stochastic: tuple[int, ...]) -> None:
    algorithm = GRPOConfig.model_validate({}).build("algorithm")
    given = SamplingPlan(4, Canvas(4, 4), 1.0, sde(), 0, 0, stochastic=frozenset(stochastic), recorded=frozenset({0, 1, 2, 3}))
    assert algorithm.plan(given).recorded == set(stochastic)
    assert algorithm.plan(given).stochastic == set(stochastic)


def test_an_iteration_records_and_trains_as_many_of_the_candidates_as_the_config_says(settings: dict[str, Any]) -> None:
    run = prepare_run(validate(settings))
    places = {round(1 - i / 6, 6): i for i in range(7)}
    windows = []
    for iteration in range(10):
        experience = collect_rollouts(run, iteration, Timer(run.policy.device)).experience
        windows.append(frozenset(places[round(float(step.sigma[0]), 6)] for step in experience.steps))
        assert windows[-1] == experience.plan.stochastic == experience.plan.recorded
        assert all(step.log_prob is not None for step in experience.steps)
        losses = list(run.assembly.hooks.update(experience, run.policy))
        assert len(losses) == 2 * 2, "two steps of two batches"
    assert all(len(window) == 2 and window <= {1, 2, 4} for window in windows)
    assert len(set(windows)) == 3, "every pair of the three candidates comes up"
    again = [collect_rollouts(run, iteration, Timer(run.policy.device)).experience.plan.stochastic for iteration in range(10)]
    assert again == windows, "the window depends on the seed and the iteration alone"


@pytest.mark.parametrize("algorithm", ["grpo", "grpo-guard", "dppo"])
@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde", "cps"])
def test_of_a_sliding_window_no_step_outside_it_is_recorded(settings: dict[str, Any], algorithm: str, dynamics: str) -> None:
    settings["algorithm"] = algorithm
    settings["sampling"]["dynamics"] = {
        "name": dynamics,
        "sde_steps": [0, 1, 2, 4],
        "num_sde_steps": 2,
        "slide": {"every": 2, "stride": 1},
    }
    run = prepare_run(validate(settings))
    places = {round(1 - i / 6, 6): i for i in range(7)}
    windows = []
    for iteration in range(7):
        experience = collect_rollouts(run, iteration, Timer(run.policy.device)).experience
        recorded = [places[round(float(step.sigma[0]), 6)] for step in experience.steps]
        assert experience.plan.stochastic == experience.plan.recorded == set(recorded)
        assert all(step.next_latents is not None and step.log_prob is not None for step in experience.steps)
        assert all((step.mean is None) == (algorithm == "grpo") for step in experience.steps)
        windows.append(recorded)
    assert windows == [[0, 1], [0, 1], [1, 2], [1, 2], [2, 4], [2, 4], [0, 1]]


def test_steps_outside_the_window_are_eulers(settings: dict[str, Any]) -> None:
    settings["model"] = {"name": "two-parameter", "p": 0.4, "q": 0.3}
    settings["sampling"]["dynamics"] = {"name": "flow-sde", "sde_steps": [1, 4]}
    run = prepare_run(validate(settings))
    early, late = collect_rollouts(run, 0, Timer(run.policy.device)).experience.steps
    assert early.next_latents is not None
    x = early.next_latents.double()
    for i in (2, 3):  # by hand: velocity = p x + q sigma, and a sixth of the way at a time
        x = x - (0.4 * x + 0.3 * (1 - i / 6)) / 6
    torch.testing.assert_close(late.latents.double(), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "dynamics"),
    [
        ({}, None),
        ({"clip_range": 0.2}, None),
        ({"kl": 0.05}, None),
        ({"kl": 0.05, "kl_form": "velocity"}, None),
        ({}, sde(noise_level=0.4, sde_steps=[0, 1, 2], num_sde_steps=1)),
    ],
)
def test_grpo_learns_what_the_reward_asks_for(options: dict[str, Any], dynamics: Dynamics | None) -> None:
    check_algorithm(GRPOConfig.model_validate(options), dynamics=dynamics)


@pytest.mark.parametrize("dynamics", ["ode", {"name": "ode"}, None], ids=["name", "mapping", "left-out"])
def test_deterministic_dynamics_are_refused_with_the_reason(settings: dict[str, Any], dynamics: Any) -> None:
    settings["sampling"].pop("dynamics")
    if dynamics is not None:
        settings["sampling"]["dynamics"] = dynamics
    with pytest.raises(UserError, match=r"grpo .*log-density.*'ode'.*deterministic.*choose .*flow-sde"):
        validate(settings)


def test_the_command_line_refuses_deterministic_dynamics_in_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [sys.executable, "-m", "flowfactory", "run", str(config), "--set", "sampling.dynamics=ode"]
    environment = {**os.environ, "FLOWFACTORY_PLUGINS": "grpo"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
    assert "deterministic" in ran.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("key", "value"), [("clip_range", 0), ("clip_range", -0.1), ("kl", -1), ("kl_form", "means")])
def test_an_option_that_makes_no_sense_is_refused(settings: dict[str, Any], key: str, value: Any) -> None:
    settings["algorithm"][key] = value
    with pytest.raises(UserError, match=f"algorithm.{key}"):
        validate(settings)


def test_a_run_passes_preflight_and_moves_off_its_reference(settings: dict[str, Any]) -> None:
    settings["algorithm"] |= {"kl": 0.1}
    said: list[str] = []
    records = train(validate(settings), say=said.append).records()[1:]
    (replayed,) = (line.split(" within ")[1] for line in said if "replaying 2 recorded steps gives a ratio of 1" in line)
    assert float(replayed) <= 1e-6  # of batches of 8 and of 4, which other kernels may round otherwise
    assert any("a finite gradient reaches all 2 trainable tensors, kl too" in line for line in said)
    assert [record["iteration"] for record in records] == [1, 2, 3]
    assert records[0]["kl"] == 0
    assert records[1]["kl"] > 0
    assert all(record["ratio/max_deviation"] <= 1e-6 for record in records), "one update an iteration is on-policy"


def test_later_updates_of_an_iteration_are_off_policy_and_bounded(settings: dict[str, Any]) -> None:
    settings["training"] |= {"epochs": 4}
    settings["algorithm"] |= {"clip_range": 1e-4}
    records = train(validate(settings), say=lambda _: None).records()[1:]
    assert all(record["ratio/max_deviation"] > 1e-4 for record in records)
    assert all(0 < record["clip_fraction"] < 1 for record in records)
