"""Runs of CRD: what they report and resume to, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowfactory import testing
from flowfactory.testing import ODE
from flowfactory_crd.crd import CRDConfig

SLOW = {"name": "constant", "decay": 0.5}
OPTIONS: dict[str, dict[str, Any]] = {
    "as-it-is": {},
    "pools": {"centre": "pools", "loss": "bce", "sampling": SLOW, "timesteps": {"name": "discrete", "count": 3}},
    "guided": {"centre": "softmax", "scaled": False, "kl": 0.1, "kl_guidance": 2.0, "old": SLOW, "sampling": SLOW},
}
every = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def crd(folder: Path, options: dict[str, Any], model: str = "guided", **training: Any) -> dict[str, Any]:
    """A run of two updates an iteration."""
    return testing.settings(
        folder,
        {"name": "crd", **options},
        sampling={"groups": 3, "steps": 4},
        prompts={"negative": "seven l"},
        model={"name": model},
        training={"updates": 2, **training},
    )


@every
def test_a_run_passes_preflight_and_reports(tmp_path: Path, options: dict[str, Any]) -> None:
    terms = ["kl"] if "kl" in options else []
    records = testing.check_runs(crd(tmp_path, options), ["implicit_reward", "optimality"], terms).records
    assert all(0 < record["optimality"] < 1 for record in records)
    assert ("kl" in records[0]) == ("kl" in options)


def test_with_one_update_an_iteration_the_first_implicit_rewards_are_zero(tmp_path: Path) -> None:
    run = crd(tmp_path, {"kl": 0.1}, "two-parameter", updates=1)
    testing.check_first_update(run, {"implicit_reward": 0, "kl": 0})


@every
def test_a_resumed_run_gives_the_weights_of_one_that_was_not_stopped(tmp_path: Path, options: dict[str, Any]) -> None:
    # a group is spread over two forwards
    testing.check_resumes_bit_for_bit(crd(tmp_path, options, batch_size=3))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "bce", "centre": "pools", "timesteps": {"name": "discrete", "count": 2}},
        {"centre": "softmax", "scaled": False, "kl": 0.01},
    ],
)
def test_crd_learns_what_the_reward_asks_for(options: dict[str, Any]) -> None:
    testing.check_algorithm(CRDConfig.model_validate(options), dynamics=ODE())
