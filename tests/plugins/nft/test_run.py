"""Runs of DiffusionNFT: what draws, what they report and resume to, which configs are refused, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import saved
import torch
from torch import Tensor

from flowfactory import RunError, UserError, flow
from flowfactory.config.loading import validate
from flowfactory.flow.dynamics import CPSConfig, FlowSDEConfig
from flowfactory.runs.train import train
from flowfactory.testing import ODE, check_algorithm
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import prepare_run
from flowfactory.types import Dynamics
from flowfactory_nft.nft import NFTConfig

SDE: Any = FlowSDEConfig().build("dynamics")
CPS: Any = CPSConfig().build("dynamics")


def silent(_: str) -> None:
    pass


def test_a_run_passes_preflight_and_reports_its_metrics(settings: dict[str, Any]) -> None:
    settings["algorithm"] |= {"kl": 0.1}
    said: list[str] = []
    records = train(validate(settings), say=said.append).records()[1:]
    assert any("no step is recorded" in line for line in said)
    assert any("a finite gradient reaches all 2 trainable tensors, kl too" in line for line in said)
    assert [record["iteration"] for record in records] == [1, 2, 3]
    for record in records:
        # advantages are centred, and within the maximum of 5
        assert record["optimality"] == pytest.approx(0.5, abs=1e-6)
        assert record["old_distance"] > 0, "the second update of an iteration is off the old policy"
        assert record["kl"] > 0
        assert record["grad_norm"] > 0


def test_the_first_update_is_at_the_old_policy(settings: dict[str, Any]) -> None:
    settings["training"]["updates"] = 1
    settings["algorithm"] |= {"old": {"name": "constant", "decay": 0}}
    copied = train(validate(settings), say=silent).records()[1:]
    assert [record["old_distance"] for record in copied] == [0, 0, 0]
    settings["algorithm"] |= {"old": {"name": "constant", "decay": 0.5}}
    settings["output"]["dir"] += "-lagging"
    lagging = train(validate(settings), say=silent).records()[1:]
    assert [record["old_distance"] > 0 for record in lagging] == [False, True, True]


def test_a_resumed_run_ends_in_the_weights_and_averages_of_one_that_was_not_stopped(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["algorithm"] |= {"kl": 0.1, "old": {"name": "constant", "decay": 0.5}}

    def end(name: str, *iterations: int) -> dict[str, Tensor]:
        settings["output"]["dir"] = str(tmp_path / name)
        for number in iterations:
            settings["training"]["iterations"] = number
            directory = train(validate(settings), resume=number != iterations[0], say=silent)
        last = directory.checkpoints / "000003"
        weights = saved.weights(last)
        return weights | saved.kept(last)

    whole, resumed = end("whole", 3), end("resumed", 2, 3)
    assert set(whole) == {"transformer.p", "transformer.q"} | {
        f"{kept}/transformer.{name}" for kept in ("old", "reference") for name in ("p", "q")
    }
    assert len({float(whole[key]) for key in ("transformer.p", "old/transformer.p", "reference/transformer.p")}) == 3
    assert set(resumed) == set(whole)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_pictures_are_those_of_the_old_weights(settings: dict[str, Any]) -> None:
    settings["model"] = {"name": "two-parameter", "p": 0.3, "q": -0.2}
    settings["algorithm"] |= {"old": {"name": "constant", "decay": 0.25}}
    run = prepare_run(validate(settings))
    run.assembly.hooks.run_started(run.info, run.policy)
    with torch.no_grad():
        run.policy.parameters["transformer.p"].fill_(0.5)
        run.policy.parameters["transformer.q"].fill_(-0.35)
    run.policy.mark_changed()
    for iteration, (p, q) in enumerate([(0.3, -0.2), (0.45, -0.3125)]):  # a quarter of the first, three of the present
        experience = collect_rollouts(run, iteration, Timer(run.policy.device)).experience
        x = flow.noise(experience.plan, (1, 4, 4)).double()
        for i in range(6):  # Euler's, a sixth of the way at a time
            x = x - (p * x + q * (1 - i / 6)) / 6
        torch.testing.assert_close(experience.latents.double(), x, rtol=1e-5, atol=1e-5)
        assert [weight.item() for weight in run.policy.parameters.values()] == pytest.approx([0.5, -0.35])
        run.policy.iteration_finished(iteration)


@pytest.mark.parametrize("dynamics", ["flow-sde", "cps"])
def test_a_stochastic_solver_draws_too_and_nothing_of_the_way_is_recorded(settings: dict[str, Any], dynamics: str) -> None:
    settings["sampling"]["dynamics"] = dynamics
    settings["training"]["iterations"] = 2
    config = validate(settings)
    records = train(config, say=silent).records()[1:]
    assert all(record["old_distance"] > 0 for record in records)
    run = prepare_run(config)
    run.assembly.hooks.run_started(run.info, run.policy)
    experience = collect_rollouts(run, 0, Timer(run.policy.device)).experience
    assert len(experience.plan.stochastic) == 5, "all but the last step"
    assert experience.steps == ()


@pytest.mark.parametrize(
    ("options", "dynamics"),
    [
        ({}, ODE()),
        ({"beta": 0.1, "kl": 0.01}, ODE()),
        ({"timesteps": {"name": "discrete", "count": 3}, "old": {"name": "constant", "decay": 0.5}}, ODE()),
        ({"timesteps": {"name": "logit-normal"}}, SDE),
        ({}, CPS),
    ],
    ids=["default", "kl", "discrete-lagging", "logit-normal-flow-sde", "cps"],
)
def test_nft_learns_what_the_reward_asks_for(options: dict[str, Any], dynamics: Dynamics) -> None:
    check_algorithm(NFTConfig.model_validate(options), iterations=12, dynamics=dynamics)


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


def test_an_average_to_sample_with_is_refused_since_the_old_policy_draws(settings: dict[str, Any]) -> None:
    settings["sampling"]["ema"] = {"name": "constant", "decay": 0.9}
    with pytest.raises(UserError, match=r"sampling\.ema: .* says itself which weights draw; leave it out$") as refused:
        validate(settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("beta", 0), ("advantage_max", 0), ("kl", -1), ("old", {"name": "constant", "decay": 1.5}), ("old", 0.5)],
)
def test_an_option_that_makes_no_sense_is_refused_in_one_line(settings: dict[str, Any], key: str, value: Any) -> None:
    settings["algorithm"][key] = value
    with pytest.raises(UserError, match=rf"algorithm\.{key}") as refused:
        validate(settings)
    assert "\n" not in str(refused.value)
