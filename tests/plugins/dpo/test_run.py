"""Runs of DPO and DGPO: what they report and resume to, and that they learn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from flowfactory import testing
from flowfactory.testing import ODE
from flowfactory_dpo.dgpo import DGPOConfig
from flowfactory_dpo.dpo import DPOConfig

AVERAGE = {"name": "constant", "decay": 0.5}
BY_STEP = {"name": "linear", "end": 0.3, "iterations": 8, "counted": "steps"}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo"},
    "dpo-moving": {"name": "dpo", "reference_ema": AVERAGE, "reference_guidance": 2.0, "timesteps": {"name": "discrete"}},
    "dgpo": {"name": "dgpo"},
    # averages that count optimizer steps go on counting when a run is resumed
    "dgpo-by-step": {"name": "dgpo", "clip_range": 1e-3, "ema": BY_STEP, "reference_ema": BY_STEP},
    "dgpo-moving": {"name": "dgpo", "kl": 0.1, "reference_ema": AVERAGE, "reference_guidance": 2.0},
}
every = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)


def settings(folder: Path, algorithm: dict[str, Any], **training: Any) -> dict[str, Any]:
    """A run of two updates an iteration on the flow that minds guidance."""
    return testing.settings(
        folder,
        algorithm,
        model={"name": "guided"},
        prompts={"negative": "seven l"},
        sampling={"groups": 3, "steps": 4},
        training={"updates": 2, **training},
    )


@every
def test_a_run_passes_preflight_and_reports(tmp_path: Path, algorithm: dict[str, Any]) -> None:
    metrics = ["margin", "preferred"] if algorithm["name"] == "dpo" else ["weight"]
    terms = ["kl"] if "kl" in algorithm else []
    records = testing.check_runs(settings(tmp_path, algorithm), metrics, terms).records
    assert ("kl" in records[0]) == ("kl" in algorithm)


@pytest.mark.parametrize(
    ("algorithm", "values"),
    [
        ({"name": "dpo"}, {"margin": 0, "loss": pytest.approx(math.log(2))}),
        ({"name": "dgpo", "kl": 0.1}, {"weight": 0.5, "kl": 0}),
    ],
    ids=["dpo", "dgpo"],
)
def test_with_one_update_an_iteration_it_starts_at_the_reference(
    tmp_path: Path, algorithm: dict[str, Any], values: dict[str, Any]
) -> None:
    testing.check_first_update(settings(tmp_path, algorithm, updates=1), values)


@every
def test_a_resumed_run_gives_the_weights_of_one_that_was_not_stopped(tmp_path: Path, algorithm: dict[str, Any]) -> None:
    # a group is spread over two forwards
    testing.check_resumes_bit_for_bit(settings(tmp_path, algorithm, batch_size=3))


@pytest.mark.parametrize(
    "config",
    [
        DPOConfig(),
        DPOConfig.model_validate({"reference_ema": AVERAGE, "timesteps": {"name": "discrete"}}),
        DGPOConfig(),
        DGPOConfig.model_validate({"kl": 0.01, "timesteps": {"name": "uniform", "shared": False}, "reference_ema": AVERAGE}),
    ],
)
def test_they_learn_what_the_reward_asks_for(config: Any) -> None:
    testing.check_algorithm(config, dynamics=ODE())
