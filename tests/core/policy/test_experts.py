"""Two transformers, each for the steps on its side of a boundary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import saved
import torch
from safetensors.torch import load_file

from flowfactory import RunError
from flowfactory.experience import Loss
from flowfactory.runs.train import train
from flowfactory.training.learner import Learner
from flowfactory.training.metrics import UpdateMetrics
from flowfactory.training.setup import Run


def settings(**changes: Any) -> dict[str, Any]:
    return {"model": {"name": "experts", "train": "full", **changes.pop("model", {})}, **changes}


def window(steps: list[int], count: int) -> dict[str, Any]:
    dynamics = {"name": "flow-sde", "sde_steps": steps, "num_sde_steps": count}
    return {"sampling": {"dynamics": dynamics}}


def told(directory_said: list[str]) -> str:
    return next(line for line in directory_said if "gradient reaches" in line)


def test_both_learn_where_the_steps_are_on_both_sides(load: Callable[..., Any]) -> None:
    said: list[str] = []
    train(load(settings(**window([1, 3], 2))), say=said.append)
    assert "a finite gradient reaches all 8 trainable tensors" in told(said)


def test_one_that_would_never_learn_is_found_out(load: Callable[..., Any]) -> None:
    with pytest.raises(RunError, match=r"4 of 8 trainable weights get no gradient, the first transformer_2.* transformer_2's"):
        train(load(settings(**window([0, 1], 2))), say=lambda _: None)


def test_one_whose_steps_come_in_other_iterations_is_no_mistake(load: Callable[..., Any]) -> None:
    said: list[str] = []
    train(load(settings(**window([0, 1, 2, 3], 1))), say=said.append)
    assert "but those of transformer" in told(said)


def test_the_frozen_one_draws_too_and_stays_as_it_is(prepared: Callable[..., Run], tmp_path: Path) -> None:
    run = prepared(settings(model={"only": "transformer_2"}, **window([2], 1)))
    frozen = run.policy._transformers.frozen["transformer"]
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(name.startswith("transformer_2.") for name in run.policy.parameters)
    saved.save_trained(run.policy, tmp_path)
    assert [path.name for path in tmp_path.glob("transformer*")] == ["transformer_2"]


def test_adapters_of_each_are_saved_apart_and_come_back(prepared: Callable[..., Run], tmp_path: Path) -> None:
    lora = {"lora": {"rank": 2, "alpha": 4}}
    run = prepared(settings(model={"train": lora}, **window([0, 1, 2], 3)))
    with torch.no_grad():
        for i, parameter in enumerate(run.policy.parameters.values()):
            parameter.fill_(i + 1)
    before = {name: parameter.detach().clone() for name, parameter in run.policy.parameters.items()}
    folder = tmp_path / "saved"
    folder.mkdir()
    saved.save(run.policy, folder)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("pytorch_lora*"))
    assert files == ["pytorch_lora_weights.safetensors", "transformer_2/pytorch_lora_weights.safetensors"]
    for file in files:
        assert all(name.startswith("transformer.") for name in load_file(folder / file))
    with torch.no_grad():
        for parameter in run.policy.parameters.values():
            parameter.zero_()
    saved.load(run.policy, folder)
    assert all(torch.equal(parameter, before[name]) for name, parameter in run.policy.parameters.items())


def test_the_frozen_one_goes_to_the_device_too(prepared: Callable[..., Run]) -> None:
    run = prepared(settings(model={"only": "transformer_2"}, **window([3], 1)))
    run.policy._transformers._device = torch.device("meta")
    run.policy.distribute(run.ranks, run.config.training)
    for module in (*run.policy.modules.values(), *run.policy._transformers.frozen.values()):
        assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


@pytest.mark.parametrize("only", [None, "transformer"])
def test_one_that_few_training_times_are_for_is_proven_too(
    load: Callable[..., Any], matching: Callable[..., dict[str, Any]], only: str | None
) -> None:
    """Nine times in ten are below the boundary of the experts, a half."""
    change = matching(timesteps={"name": "uniform", "count": 1, "low": 0.0, "high": 0.55})
    said: list[str] = []
    run = {"training": {"batch_size": 4, "iterations": 1}, "sampling": {"dynamics": {"name": "ode"}}}
    train(load(settings(model={"only": only}, **run) | change), say=said.append)
    assert f"a finite gradient reaches all {4 if only else 8} trainable tensors" in told(said)


def test_one_that_no_training_time_is_for_is_found_out(
    load: Callable[..., Any], matching: Callable[..., dict[str, Any]]
) -> None:
    change = matching(timesteps={"name": "uniform", "count": 1, "low": 0.0, "high": 0.45})
    with pytest.raises(RunError, match=r"4 of 8 trainable weights get no gradient, the first transformer\.0"):
        train(load(settings(sampling={"dynamics": {"name": "ode"}}) | change), say=lambda _: None)


def test_losses_that_only_the_frozen_one_made_count_and_teach_nothing(prepared: Callable[..., Run]) -> None:
    run = prepared(settings(model={"only": "transformer"}, **window([1, 3], 2)))
    learner, gathered = Learner(run.policy, run.config.training), UpdateMetrics()
    before = {name: parameter.detach().clone() for name, parameter in run.policy.parameters.items()}
    norm = learner.step(iter([Loss(torch.ones(3))]), gathered)
    assert (norm, gathered.count) == (0.0, 3)
    assert all(torch.equal(parameter, before[name]) for name, parameter in run.policy.parameters.items())
