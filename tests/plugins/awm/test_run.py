"""Runs of AWM: what they report and resume to, which configs are refused, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import saved
import torch
from torch import Tensor

from flowfactory import RunError, UserError
from flowfactory.config.loading import validate
from flowfactory.flow.dynamics import CPSConfig, FlowSDEConfig
from flowfactory.runs.train import train
from flowfactory.testing import ODE, check_algorithm
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import prepare_run
from flowfactory.types import Dynamics
from flowfactory_awm.awm import AWMConfig

SDE: Any = FlowSDEConfig().build("dynamics")
CPS: Any = CPSConfig().build("dynamics")


def silent(_: str) -> None:
    pass


def test_a_run_passes_preflight_and_reports_its_metrics(settings: dict[str, Any]) -> None:
    settings["algorithm"] |= {"kl": 0.1, "ema_kl": 0.1}
    said: list[str] = []
    records = train(validate(settings), say=said.append).records()[1:]
    assert any("no step is recorded" in line for line in said)
    assert any("a finite gradient reaches all 2 trainable tensors, ema_kl too, kl too" in line for line in said)
    assert [record["iteration"] for record in records] == [1, 2, 3]
    for record in records:
        assert record["ratio/max_deviation"] > 1e-4, "the second update of an iteration is off-policy"
        assert 0 < abs(record["ratio/mean"] - 1) <= record["ratio/max_deviation"]
        # of the first update nothing is cut, of the second whatever the first pushed past the narrow bound
        assert 0 < record["clip_fraction"] <= 0.5
        assert record["kl"] > 0
        assert record["ema_kl"] > 0
        assert record["grad_norm"] > 0


def test_with_one_update_an_iteration_every_ratio_is_one(settings: dict[str, Any]) -> None:
    settings["training"]["updates"] = 1
    records = train(validate(settings), say=silent).records()[1:]
    assert all(
        (record["ratio/mean"], record["ratio/max_deviation"], record["clip_fraction"]) == (1, 0, 0) for record in records
    )


def test_a_resumed_run_ends_in_the_weights_and_averages_of_one_that_was_not_stopped(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["algorithm"] |= {"kl": 0.1, "ema_kl": 0.1, "ema": {"name": "constant", "decay": 0.5}}

    def end(name: str, *iterations: int) -> dict[str, Tensor]:
        settings["output"]["dir"] = str(tmp_path / name)
        for number in iterations:
            settings["training"]["iterations"] = number
            directory = train(validate(settings), resume=number != iterations[0], say=silent)
        last = directory.checkpoints / "000003"
        weights = saved.weights(last)
        return weights | saved.kept(last)

    whole, resumed = end("whole", 3), end("resumed", 2, 3)
    kept = ("old", "reference", "ema")
    assert set(whole) == {"transformer.p", "transformer.q"} | {
        f"{name}/transformer.{weight}" for name in kept for weight in ("p", "q")
    }
    assert len({float(whole[key]) for key in ("transformer.p", "average/transformer.p", "reference/transformer.p")}) == 3
    assert set(resumed) == set(whole)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_an_average_may_draw_while_ratios_are_to_what_the_iteration_started_from(settings: dict[str, Any]) -> None:
    settings["sampling"]["ema"] = {"name": "constant", "decay": 0.9}
    settings["training"]["updates"] = 1
    records = train(validate(settings), say=silent).records()[1:]
    assert all(record["ratio/max_deviation"] == 0 for record in records)


@pytest.mark.parametrize("dynamics", ["flow-sde", "cps"])
def test_a_stochastic_solver_draws_too_and_nothing_of_the_way_is_recorded(settings: dict[str, Any], dynamics: str) -> None:
    settings["sampling"]["dynamics"] = dynamics
    settings["training"]["iterations"] = 2
    config = validate(settings)
    records = train(config, say=silent).records()[1:]
    assert all(record["ratio/max_deviation"] > 0 for record in records)
    run = prepare_run(config)
    run.assembly.hooks.run_started(run.info, run.policy)
    experience = collect_rollouts(run, 0, Timer(run.policy.device)).experience
    assert len(experience.plan.stochastic) == 5, "all but the last step"
    assert experience.steps == ()


@pytest.mark.parametrize(
    ("options", "dynamics"),
    [
        ({}, ODE()),
        ({"weighting": "t2"}, ODE()),
        ({"kl": 0.1, "ema_kl": 0.1, "timesteps": {"name": "discrete", "count": 3}}, ODE()),
        ({"timesteps": {"name": "logit-normal"}}, SDE),
        ({}, CPS),
    ],
    ids=["default", "t2", "kl-discrete", "logit-normal-flow-sde", "cps"],
)
def test_awm_learns_what_the_reward_asks_for(options: dict[str, Any], dynamics: Dynamics) -> None:
    check_algorithm(AWMConfig.model_validate(options), iterations=12, dynamics=dynamics)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"name": "discrete", "count": 7}, r"algorithm\.timesteps\.count \(7\) is more than the 6 sampling steps there are$"),
        (
            {"name": "discrete", "count": 6, "initial": False},
            r"algorithm\.timesteps\.count \(6\) is more than the 5 sampling steps there are$",
        ),
        ({"name": "uniform", "low": 0.6, "high": 0.4}, r"low \(0\.6\) must be below high \(0\.4\)"),
        ({"name": "logit-normal", "low": 0.5, "high": 0.5}, r"low \(0\.5\) must be below high \(0\.5\)"),
        ({"name": "uniform", "count": 0}, r"algorithm\.timesteps\.count"),
        ({"name": "uniform", "initial": True}, r"algorithm\.timesteps\.initial: unknown key"),
    ],
)
def test_training_times_that_make_no_sense_are_refused_in_one_line(
    settings: dict[str, Any], times: dict[str, Any], message: str
) -> None:
    settings["algorithm"]["timesteps"] = times
    with pytest.raises(UserError, match=message) as refused:
        validate(settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("initial", [True, False])
def test_as_many_discrete_times_as_steps_are_accepted(settings: dict[str, Any], initial: bool) -> None:
    settings["algorithm"]["timesteps"] = {"name": "discrete", "count": 6 if initial else 5, "initial": initial}
    settings["training"]["iterations"] = 1
    assert train(validate(settings), say=silent).records()[-1]["iteration"] == 1


def test_bounds_that_leave_too_few_steps_stop_the_run_in_one_line(settings: dict[str, Any]) -> None:
    settings["algorithm"]["timesteps"] = {"name": "discrete", "count": 3, "low": 0.7}
    # sigmas 1 and 5/6
    with pytest.raises(RunError, match=r"2 sampling steps lie between low 0\.7 and high 1\.0, fewer than count 3") as stopped:
        train(validate(settings), say=silent)
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weighting", "sqrt"),
        ("power", 0),
        ("power", 1.5),
        ("clip_range", 0),
        ("kl", -1),
        ("ema_kl", -1),
        ("ema", {"name": "constant", "decay": 1.5}),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_one_line(settings: dict[str, Any], key: str, value: Any) -> None:
    settings["algorithm"][key] = value
    with pytest.raises(UserError, match=rf"algorithm\.{key}") as refused:
        validate(settings)
    assert "\n" not in str(refused.value)
