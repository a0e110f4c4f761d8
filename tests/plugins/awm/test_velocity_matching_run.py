"""The options of RAM and RVM, and runs of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowfactory import testing
from flowfactory.testing import ODE
from flowfactory_awm.ram import RAMConfig
from flowfactory_awm.rvm import RVMConfig

TWO_UPDATES = {"updates": 2, "batch_size": 3}
HELD = {"name": "rvm", "kl": 0.05, "anchor": "ema", "ema": {"name": "constant", "decay": 0.5}}


def test_training_timesteps_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    testing.check_timesteps_options(testing.settings(tmp_path, {"name": "rvm"}))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("ram", "reward_multiplier", 0),
        ("ram", "clip_range", 0.1),
        ("rvm", "advantage_scale", 0),
        ("rvm", "kl", -1),
        ("rvm", "anchor", "old"),
        ("rvm", "weighting", "t"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_one_line(tmp_path: Path, name: str, key: str, value: Any) -> None:
    testing.check_refused(testing.settings(tmp_path, {"name": name, key: value}), rf"algorithm\.{key}")


@pytest.mark.parametrize("algorithm", [{"name": "ram", "reward_multiplier": 5}, HELD], ids=["ram", "rvm"])
def test_a_run_passes_preflight_and_reports_its_metrics(tmp_path: Path, algorithm: dict[str, Any]) -> None:
    run = testing.settings(tmp_path, algorithm, training=TWO_UPDATES)
    trained = testing.check_runs(run, metrics=["matching_error"], terms=["kl"])
    assert any("no step is recorded" in line for line in trained.said)
    assert all(record["kl"] > 0 for record in trained.records)


@pytest.mark.parametrize(("algorithm", "anchor"), [({"name": "ram"}, "reference"), (HELD, "anchor")], ids=["ram", "rvm"])
def test_a_resumed_run_ends_in_the_weights_of_one_that_was_not_stopped(
    tmp_path: Path, algorithm: dict[str, Any], anchor: str
) -> None:
    trained = testing.check_resumes_bit_for_bit(testing.settings(tmp_path, algorithm, training=TWO_UPDATES), stop_after=2)
    assert set(trained.kept(3)) == {f"{anchor}/transformer.{weight}" for weight in ("p", "q")}


@pytest.mark.parametrize("config", [RAMConfig(), RVMConfig(), RVMConfig(kl=0.01)], ids=["ram", "rvm", "rvm-held"])
def test_they_learn_what_the_reward_asks_for(config: Any) -> None:
    testing.check_algorithm(config, iterations=12, dynamics=ODE())
