"""Runs of DPO and DGPO from a config to a checkpoint, and the configs that are refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import saved
import torch

from flowfactory import UserError
from flowfactory.config.loading import validate
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.train import train
from flowfactory.testing import ODE, check_algorithm
from flowfactory_dpo.dgpo import DGPOConfig
from flowfactory_dpo.dpo import DPOConfig

AVERAGE = {"name": "constant", "decay": 0.5}
ALGORITHMS = {
    "dpo": {"name": "dpo"},
    "dpo-moving": {"name": "dpo", "reference_ema": AVERAGE, "reference_guidance": 2.0, "timesteps": {"name": "discrete"}},
    "dgpo": {"name": "dgpo"},
    "dgpo-moving": {"name": "dgpo", "kl": 0.1, "reference_ema": AVERAGE, "reference_guidance": 2.0},
}
every = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)


def finish(settings: dict[str, Any], out: Path, resume: bool = False, **training: Any) -> tuple[RunDirectory, list[str]]:
    """A run to its end, and what it said."""
    chosen = copy.deepcopy(settings)
    chosen["training"] |= training
    chosen["output"]["dir"] = str(out)
    said: list[str] = []
    return train(validate(chosen), resume, say=said.append), said


def figures(directory: RunDirectory) -> list[dict[str, Any]]:
    """The records without what differs from one run to the next."""
    return [
        {key: value for key, value in record.items() if not key.startswith("seconds/") and key != "peak_memory_mb"}
        for record in directory.records()
    ]


@every
def test_a_run_passes_preflight_and_reports(settings: dict[str, Any], algorithm: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"algorithm": algorithm, "model": "guided"}
    directory, said = finish(settings, tmp_path / "run")
    too = ", kl too" if "kl" in algorithm else ""
    assert f"preflight: a finite gradient reaches all 2 trainable tensors{too}" in said
    assert sum(line.startswith("preflight: ") for line in said) == 4
    records = directory.records()[1:]
    assert [record["iteration"] for record in records] == [1, 2, 3]
    wanted = {"loss", "grad_norm", "reward/light/mean"}
    wanted |= {"margin", "preferred"} if algorithm["name"] == "dpo" else {"weight"}
    wanted |= {"kl"} if "kl" in algorithm else set()
    for record in records:
        assert wanted <= set(record)
        assert all(math.isfinite(record[name]) for name in wanted)
        assert record["grad_norm"] > 0
    assert ("kl" in records[0]) == ("kl" in algorithm)


def test_with_one_update_an_iteration_dpo_starts_at_log_two(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"algorithm": {"name": "dpo"}}
    first, second, _ = finish(settings, tmp_path / "run", updates=1)[0].records()[1:]
    assert first["margin"] == 0
    assert first["loss"] == pytest.approx(math.log(2))
    assert second["margin"] != 0


def test_with_one_update_an_iteration_dgpo_starts_at_weights_of_a_half(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"algorithm": {"name": "dgpo", "kl": 0.1}}
    first, second, _ = finish(settings, tmp_path / "run", updates=1)[0].records()[1:]
    assert (first["weight"], first["kl"]) == (0.5, 0)
    assert second["weight"] != 0.5
    assert second["kl"] > 0


@every
def test_a_resumed_run_gives_the_weights_of_one_that_was_not_stopped(
    settings: dict[str, Any], algorithm: dict[str, Any], tmp_path: Path
) -> None:
    settings |= {"algorithm": algorithm, "model": "guided"}
    settings["training"]["batch_size"] = 3  # a group is spread over two forwards
    whole, _ = finish(settings, tmp_path / "whole")
    finish(settings, tmp_path / "parts", iterations=1)
    parts, said = finish(settings, tmp_path / "parts", resume=True)
    assert any(line.startswith("resumed after iteration 1 from") for line in said)
    assert figures(parts) == figures(whole)
    start = saved.weights(parts.checkpoints / "000001")
    for read in (saved.weights, saved.kept):
        found, expected = (read(directory.checkpoints / "000003") for directory in (parts, whole))
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    trained = saved.weights(parts.checkpoints / "000003")
    assert all(not torch.equal(trained[f"transformer.{name}"], start[f"transformer.{name}"]) for name in ("p", "q"))


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
    check_algorithm(config, dynamics=ODE())


@pytest.mark.parametrize("name", ["dpo", "dgpo"])
def test_more_updates_than_groups_are_refused(settings: dict[str, Any], name: str) -> None:
    settings |= {"algorithm": name}
    settings["training"]["updates"] = 3
    validate(settings)
    settings["training"]["updates"] = 4
    with pytest.raises(UserError, match=r"training.updates \(4\) is more than the 3 groups there are") as refused:
        validate(settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["dpo", "dgpo"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"beta": 0}, r"algorithm\.beta"),
        ({"beta": -1}, r"algorithm\.beta"),
        ({"reference_guidance": -1}, r"algorithm\.reference_guidance"),
        ({"reference_ema": {"name": "constant", "decay": 1.5}}, r"algorithm\.reference_ema\.decay"),
        (
            {"timesteps": {"name": "discrete", "count": 5}},
            r"algorithm\.timesteps\.count \(5\) is more than the 4 sampling steps",
        ),
        ({"timesteps": {"name": "uniform", "low": 0.6, "high": 0.4}}, r"low \(0\.6\) must be below high \(0\.4\)"),
        ({"betta": 1}, r"algorithm\.betta.*did you mean 'beta'"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_one_line(
    settings: dict[str, Any], name: str, options: dict[str, Any], sentence: str
) -> None:
    settings |= {"algorithm": {"name": name, **options}}
    with pytest.raises(UserError, match=sentence) as refused:
        validate(settings)
    assert "\n" not in str(refused.value)


def test_arms_of_a_pair_that_would_share_no_noise_are_refused(settings: dict[str, Any]) -> None:
    settings |= {"algorithm": {"name": "dpo", "timesteps": {"name": "uniform", "shared": False}}}
    with pytest.raises(UserError, match=r"algorithm\.timesteps\.shared: .* leave it out") as refused:
        validate(settings)
    assert "\n" not in str(refused.value)
    for shared in (None, True):
        settings["algorithm"]["timesteps"]["shared"] = shared
        validate(settings)


def test_a_negative_kl_is_refused(settings: dict[str, Any]) -> None:
    settings |= {"algorithm": {"name": "dgpo", "kl": -0.1}}
    with pytest.raises(UserError, match=r"algorithm\.kl"):
        validate(settings)
