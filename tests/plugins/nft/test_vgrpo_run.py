"""The options of V-GRPO, and runs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowfactory import testing
from flowfactory.flow.dynamics import FlowSDEConfig
from flowfactory.testing import ODE
from flowfactory_nft.vgrpo import VGRPOConfig

TWO_UPDATES = {"updates": 2, "batch_size": 3}


def test_training_timesteps_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    testing.check_timesteps_options(testing.settings(tmp_path, {"name": "v-grpo"}))


@pytest.mark.parametrize(("key", "value"), [("clip_range", 0), ("advantage_max", 0), ("kl", -1), ("old_kl", -1), ("beta", 1)])
def test_an_option_that_makes_no_sense_is_refused_in_one_line(tmp_path: Path, key: str, value: Any) -> None:
    testing.check_refused(testing.settings(tmp_path, {"name": "v-grpo", key: value}), rf"algorithm\.{key}")


def test_a_run_passes_preflight_and_reports_its_metrics(tmp_path: Path) -> None:
    run = testing.settings(tmp_path, {"name": "v-grpo", "kl": 0.1, "old_kl": 0.1}, training=TWO_UPDATES)
    trained = testing.check_runs(run, metrics=["ratio/mean", "ratio/max_deviation", "clip_fraction"], terms=["kl", "old_kl"])
    for record in trained.records:
        assert record["ratio/max_deviation"] > 1e-5, "the second update of an iteration is off-policy"
        assert record["kl"] > 0
        assert record["old_kl"] > 0


def test_with_one_update_an_iteration_every_ratio_is_one(tmp_path: Path) -> None:
    for record in testing.train(testing.settings(tmp_path, {"name": "v-grpo"}, training={"batch_size": 3})).records:
        assert (record["ratio/mean"], record["ratio/max_deviation"], record["clip_fraction"]) == (1, 0, 0)


def test_a_resumed_run_ends_in_the_weights_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    run = testing.settings(tmp_path, {"name": "v-grpo", "kl": 0.1}, training=TWO_UPDATES)
    trained = testing.check_resumes_bit_for_bit(run, stop_after=2)
    assert set(trained.kept(3)) == {f"{name}/transformer.{weight}" for name in ("old", "reference") for weight in ("p", "q")}


@pytest.mark.parametrize(
    ("options", "dynamics"),
    [({}, ODE()), ({"kl": 0.01, "old_kl": 0.01}, FlowSDEConfig().build("dynamics"))],
    ids=["default", "held-flow-sde"],
)
def test_v_grpo_learns_what_the_reward_asks_for(options: dict[str, Any], dynamics: Any) -> None:
    testing.check_algorithm(VGRPOConfig.model_validate(options), iterations=12, dynamics=dynamics)
