"""Runs of AWM: what they report and resume to, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowfactory import testing
from flowfactory.flow.dynamics import CPSConfig, FlowSDEConfig
from flowfactory.testing import ODE
from flowfactory_awm.awm import AWMConfig

TWO_UPDATES = {"updates": 2, "batch_size": 3}
BARE = {"name": "awm", "clip_range": 1e-4, "advantage_scale": 1.0, "kl": 0.0, "ema_kl": 0.0, "timesteps": "uniform"}


def test_a_run_passes_preflight_and_reports_its_metrics(tmp_path: Path) -> None:
    run = testing.settings(tmp_path, BARE | {"kl": 0.1, "ema_kl": 0.1}, training=TWO_UPDATES)
    trained = testing.check_runs(run, metrics=["ratio/mean", "ratio/max_deviation", "clip_fraction"], terms=["kl", "ema_kl"])
    assert any("no step is recorded" in line for line in trained.said)
    for record in trained.records:
        assert record["ratio/max_deviation"] > 1e-4, "the second update of an iteration is off-policy"
        assert 0 < abs(record["ratio/mean"] - 1) <= record["ratio/max_deviation"]
        # of the first update nothing is cut, of the second whatever the first pushed past the narrow bound
        assert 0 < record["clip_fraction"] <= 0.5
        assert record["kl"] > 0
        assert record["ema_kl"] > 0


@pytest.mark.parametrize("sampling", [{}, {"ema": {"name": "constant", "decay": 0.9}}], ids=["present", "average"])
def test_with_one_update_an_iteration_every_ratio_is_one_whichever_weights_draw(
    tmp_path: Path, sampling: dict[str, Any]
) -> None:
    for record in testing.train(
        testing.settings(tmp_path, {"name": "awm"}, sampling=sampling, training={"batch_size": 3})
    ).records:
        assert (record["ratio/mean"], record["ratio/max_deviation"], record["clip_fraction"]) == (1, 0, 0)


def test_a_resumed_run_ends_in_the_weights_and_averages_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    algorithm = BARE | {"kl": 0.1, "ema_kl": 0.1, "ema": {"name": "constant", "decay": 0.5}}
    trained = testing.check_resumes_bit_for_bit(testing.settings(tmp_path, algorithm, training=TWO_UPDATES), stop_after=2)
    kept = trained.kept(3)
    assert set(kept) == {f"{name}/transformer.{weight}" for name in ("old", "reference", "ema") for weight in ("p", "q")}
    present = float(trained.weights(3)["transformer.p"])
    assert len({present, *(float(kept[f"{name}/transformer.p"]) for name in ("reference", "ema"))}) == 3


@pytest.mark.parametrize("dynamics", ["flow-sde", "cps"])
def test_a_stochastic_solver_draws_too_and_nothing_of_the_way_is_recorded(tmp_path: Path, dynamics: str) -> None:
    run = testing.settings(
        tmp_path, {"name": "awm"}, sampling={"dynamics": dynamics}, training={**TWO_UPDATES, "iterations": 2}
    )
    assert all(record["ratio/max_deviation"] > 0 for record in testing.check_records_no_step(run).records)


@pytest.mark.parametrize(
    ("options", "dynamics"),
    [
        ({}, ODE()),
        ({"weighting": "t2"}, ODE()),
        ({"kl": 0.1, "ema_kl": 0.1, "timesteps": {"name": "discrete", "count": 3}}, ODE()),
        ({"timesteps": {"name": "logit-normal"}}, FlowSDEConfig().build("dynamics")),
        ({}, CPSConfig().build("dynamics")),
    ],
    ids=["default", "t2", "kl-discrete", "logit-normal-flow-sde", "cps"],
)
def test_awm_learns_what_the_reward_asks_for(options: dict[str, Any], dynamics: Any) -> None:
    testing.check_algorithm(AWMConfig.model_validate(options), iterations=12, dynamics=dynamics)
