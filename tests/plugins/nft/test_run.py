"""Runs of DiffusionNFT: what draws, what they report and resume to, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory import Policy, flow, testing
from flowfactory.flow.dynamics import CPSConfig, FlowSDEConfig
from flowfactory.testing import ODE
from flowfactory_nft.nft import NFTConfig


def nft(folder: Path, updates: int = 2, **options: Any) -> dict[str, Any]:
    return testing.settings(folder, {"name": "nft", "kl": 0.0, **options}, training={"updates": updates, "batch_size": 3})


def test_a_run_passes_preflight_and_reports_its_metrics(tmp_path: Path) -> None:
    trained = testing.check_runs(nft(tmp_path, kl=0.1), metrics=["optimality", "old_distance"], terms=["kl"])
    assert any("no step is recorded" in line for line in trained.said)
    for record in trained.records:
        # advantages are centred, and within the maximum of 5
        assert record["optimality"] == pytest.approx(0.5, abs=1e-6)
        assert record["old_distance"] > 0, "the second update of an iteration is off the old policy"
        assert record["kl"] > 0


def test_the_old_policy_is_swapped_in_once_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swaps, forwards = list[None](), list[bool]()
    swapped, evaluate = Policy._swapped, Policy.evaluate
    monkeypatch.setattr(Policy, "_swapped", lambda *given: (swaps.append(None), swapped(*given))[1])
    monkeypatch.setattr(Policy, "evaluate", lambda *given: (forwards.append(torch.is_grad_enabled()), evaluate(*given))[1])
    trained = testing.train(nft(tmp_path, old={"name": "constant", "decay": 0.0}))
    iterations = len(trained.records)
    assert forwards.count(False) >= 4 * iterations, "an update has several micro-batches, and each two times"
    assert len(swaps) == iterations, "the first update of an iteration is at the old policy, the second is not"


@pytest.mark.parametrize(("decay", "lags"), [(0.0, [False, False, False]), (0.5, [False, True, True])])
def test_the_first_update_is_at_the_old_policy(tmp_path: Path, decay: float, lags: list[bool]) -> None:
    trained = testing.train(nft(tmp_path, updates=1, old={"name": "constant", "decay": decay}))
    assert [record["old_distance"] != 0 for record in trained.records] == lags


def test_a_resumed_run_ends_in_the_weights_and_averages_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    run = nft(tmp_path, kl=0.1, old={"name": "constant", "decay": 0.5})
    trained = testing.check_resumes_bit_for_bit(run, stop_after=2)
    weights = trained.weights(3) | trained.kept(3)
    assert set(weights) == {f"{kept}transformer.{name}" for kept in ("", "old/", "reference/") for name in ("p", "q")}
    assert len({float(weights[f"{kept}transformer.p"]) for kept in ("", "old/", "reference/")}) == 3


def test_pictures_are_those_of_the_old_weights(tmp_path: Path) -> None:
    raw = nft(tmp_path, old={"name": "constant", "decay": 0.25})
    run = testing.begin(raw | {"model": {"name": "two-parameter", "p": 0.3, "q": -0.2}})
    for iteration, (p, q) in enumerate([(0.3, -0.2), (0.45, -0.3125)]):  # a quarter of the first, three of the present
        if iteration == 0:
            run.draw(0).move_to(0.5, -0.35)
        drawn = run.draw(iteration)
        x = flow.noise(drawn.experience.plan, (1, 4, 4)).double()
        for i in range(6):  # Euler's, a sixth of the way at a time
            x = x - (p * x + q * (1 - i / 6)) / 6
        torch.testing.assert_close(drawn.experience.latents.double(), x, rtol=1e-5, atol=1e-5)
        assert drawn.weights() == pytest.approx((0.5, -0.35))
        run.policy.iteration_finished(iteration)


@pytest.mark.parametrize("dynamics", ["flow-sde", "cps"])
def test_a_stochastic_solver_draws_too_and_nothing_of_the_way_is_recorded(tmp_path: Path, dynamics: str) -> None:
    run = testing.settings(
        tmp_path, {"name": "nft"}, sampling={"dynamics": dynamics}, training={"iterations": 2, "updates": 2, "batch_size": 3}
    )
    assert all(record["old_distance"] > 0 for record in testing.check_records_no_step(run).records)


@pytest.mark.parametrize(
    ("options", "dynamics"),
    [
        ({}, ODE()),
        ({"beta": 0.1, "kl": 0.01}, ODE()),
        ({"timesteps": {"name": "discrete", "count": 3}, "old": {"name": "constant", "decay": 0.5}}, ODE()),
        ({"timesteps": {"name": "logit-normal"}}, FlowSDEConfig().build("dynamics")),
        ({}, CPSConfig().build("dynamics")),
    ],
    ids=["default", "kl", "discrete-lagging", "logit-normal-flow-sde", "cps"],
)
def test_nft_learns_what_the_reward_asks_for(options: dict[str, Any], dynamics: Any) -> None:
    testing.check_algorithm(NFTConfig.model_validate(options), iterations=12, dynamics=dynamics)
