"""Runs of CRD from a config to a checkpoint, and the configs that are refused."""

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
from flowfactory_crd.crd import CRDConfig

SLOW = {"name": "constant", "decay": 0.5}
OPTIONS: dict[str, dict[str, Any]] = {
    "as-it-is": {},
    "pools": {"centre": "pools", "loss": "bce", "sampling": SLOW, "timesteps": {"name": "discrete", "count": 3}},
    "guided": {"centre": "softmax", "scaled": False, "kl": 0.1, "kl_guidance": 2.0, "old": SLOW, "sampling": SLOW},
}
every = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


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
def test_a_run_passes_preflight_and_reports(settings: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    settings["algorithm"] |= options
    settings["model"] = "guided"
    directory, said = finish(settings, tmp_path / "run")
    too = ", kl too" if "kl" in options else ""
    assert f"preflight: a finite gradient reaches all 2 trainable tensors{too}" in said
    assert sum(line.startswith("preflight: ") for line in said) == 4
    records = directory.records()[1:]
    assert [record["iteration"] for record in records] == [1, 2, 3]
    wanted = {"loss", "grad_norm", "reward/light/mean", "implicit_reward", "optimality"}
    wanted |= {"kl"} if "kl" in options else set()
    for record in records:
        assert wanted <= set(record)
        assert all(math.isfinite(record[name]) for name in wanted)
        assert record["grad_norm"] > 0
        assert 0 < record["optimality"] < 1
    assert ("kl" in records[0]) == ("kl" in options)


def test_with_one_update_an_iteration_the_first_implicit_rewards_are_zero(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["algorithm"] |= {"kl": 0.1}
    first, second, _ = finish(settings, tmp_path / "run", updates=1)[0].records()[1:]
    assert (first["implicit_reward"], first["kl"]) == (0, 0)
    assert second["implicit_reward"] != 0
    assert second["kl"] > 0


@every
def test_a_resumed_run_gives_the_weights_of_one_that_was_not_stopped(
    settings: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    settings["algorithm"] |= options
    settings["model"] = "guided"
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
    "options",
    [
        {},
        {"loss": "bce", "centre": "pools", "timesteps": {"name": "discrete", "count": 2}},
        {"centre": "softmax", "scaled": False, "kl": 0.01},
    ],
)
def test_crd_learns_what_the_reward_asks_for(options: dict[str, Any]) -> None:
    check_algorithm(CRDConfig.model_validate(options), dynamics=ODE())


def test_more_updates_than_groups_are_refused(settings: dict[str, Any]) -> None:
    settings["training"]["updates"] = 3
    validate(settings)
    settings["training"]["updates"] = 4
    with pytest.raises(UserError, match=r"training.updates \(4\) is more than the 3 groups there are") as refused:
        validate(settings)
    assert "\n" not in str(refused.value)


def test_another_average_to_draw_with_is_refused(settings: dict[str, Any]) -> None:
    settings["sampling"]["ema"] = SLOW
    with pytest.raises(UserError, match=r"sampling\.ema: this algorithm says itself which weights draw") as refused:
        validate(settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"beta": 0}, r"algorithm\.beta"),
        ({"temperature": 0}, r"algorithm\.temperature"),
        ({"advantage_max": 0}, r"algorithm\.advantage_max"),
        ({"kl": -0.1}, r"algorithm\.kl"),
        ({"kl_guidance": -1}, r"algorithm\.kl_guidance"),
        ({"loss": "mae"}, r"algorithm\.loss"),
        ({"centre": "median"}, r"algorithm\.centre"),
        ({"old": {"name": "constant", "decay": 1.5}}, r"algorithm\.old\.decay"),
        ({"sampling": {"name": "piecewise-linear", "points": [[3, 0.1], [3, 0.2]]}}, r"points in order"),
        (
            {"timesteps": {"name": "discrete", "count": 5}},
            r"algorithm\.timesteps\.count \(5\) is more than the 4 sampling steps",
        ),
        ({"center": "mean"}, r"algorithm\.center.*did you mean 'centre'"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_one_line(
    settings: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    settings["algorithm"] |= options
    with pytest.raises(UserError, match=sentence) as refused:
        validate(settings)
    assert "\n" not in str(refused.value)
