"""Weights that are not finite are neither saved nor read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory import hookimpl
from flowfactory.config.schema import RunConfig
from flowfactory.distributed.ranks import ALONE
from flowfactory.errors import RunError
from flowfactory.policy.policy import Policy
from flowfactory.runs.checkpoints import lookup
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.train import train
from flowfactory.training.setup import Run

Load = Callable[..., RunConfig]
Trained = Callable[..., RunDirectory]
Invoke = Callable[..., tuple[int, str, str]]
MODELS: list[dict[str, Any]] = [{"name": "net", "train": "full"}, {"name": "net"}]
EVERY = {"checkpoint_every": 1, "keep_last": 9}
BOTH = pytest.mark.parametrize("model", MODELS, ids=["full", "lora"])


def files(directory: RunDirectory) -> list[str]:
    return sorted(path.name for path in directory.checkpoints.glob("*"))


def test_a_last_update_that_overflows_is_an_error_and_nothing_of_it_is_saved(load: Load, tmp_path: Path) -> None:
    config = load({"model": MODELS[0], "training": {"iterations": 1, "updates": 1}})
    # the first step moves every weight by the rate, and the decay by as much times the weight; no config may say so
    optimizer = config.training.optimizer.model_copy(update={"lr": 3.3e38, "weight_decay": 1.0, "betas": (0.0, 0.99)})
    config = config.model_copy(update={"training": config.training.model_copy(update={"optimizer": optimizer})})
    with pytest.raises(RunError, match=r"^the update left .* not finite .* is not saved; .*; there is no checkpoint yet$"):
        train(config)
    directory = RunDirectory(tmp_path / "run")
    assert files(directory) == []
    assert [record["iteration"] for record in directory.records()] == [0]


class Spoiler:
    """Spoils weights that are kept, which no loss tells of, after an iteration."""

    def __init__(self, iteration: int) -> None:
        self.spoiled = iteration
        self.policy: Policy

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        self.policy = policy

    @hookimpl
    def iteration_finished(self, iteration: int) -> None:
        if iteration == self.spoiled:
            state = self.policy.state()
            name = next(name for name in state if name.startswith("kept/evaluation/"))
            state[name].flatten()[-1] = torch.nan


@BOTH
def test_averages_are_looked_at_too_and_earlier_checkpoints_stay(model: dict[str, Any], load: Load, tmp_path: Path) -> None:
    config = load({"model": model, "evaluation": {"ema": "constant"}, "training": {"iterations": 4}, "output": EVERY})
    last = tmp_path / "run/checkpoints/000001"
    with pytest.raises(RunError, match=rf"^the update left kept/evaluation/transformer\..* the last checkpoint is {last}$"):
        train(config, observers=[Spoiler(2)], say=lambda _: None)
    directory = RunDirectory(tmp_path / "run")
    assert files(directory) == ["000001"]
    assert lookup.find(directory.checkpoints) == last
    assert [record["iteration"] for record in directory.records()] == [0, 1, 2]
    train(config, resume=True, say=lambda _: None)
    assert files(directory) == ["000001", "000002", "000003", "000004"]


COMMANDS = ("export", "sample", "eval", "run")


@pytest.mark.parametrize(
    ("place", "command"), [("present/", command) for command in COMMANDS] + [("kept/slow/", "run"), ("optimizer/", "run")]
)
def test_a_checkpoint_with_numbers_that_are_not_finite_is_refused(
    place: str, command: str, trained: Trained, invoke: Invoke, prepared: Callable[..., Run], tmp_path: Path
) -> None:
    directory, spoiled = spoil(place, trained, prepared)
    first, rest = arguments(command, directory, tmp_path)
    code, _, err = invoke(command, first, *rest)
    assert code == 2
    name, folder = spoiled.removeprefix("present/"), directory.checkpoints / "000004"
    told = f"{folder} is damaged: {name} is not finite" if command == "export" else f"{folder}: {name} is not finite (1 of "
    assert err.startswith(f"error: {told}")
    assert err.endswith("; choose another checkpoint, or delete it\n")
    assert not (tmp_path / "out").exists()
    if command == "export":
        assert invoke(command, first, *rest, "--checkpoint", "3")[0] == 0


@pytest.mark.parametrize("command", ["export", "sample", "eval"])
def test_what_a_command_does_not_ask_for_need_not_be_finite_nor_there(
    command: str, trained: Trained, invoke: Invoke, prepared: Callable[..., Run], tmp_path: Path
) -> None:
    directory, _ = spoil("kept/slow/", trained, prepared)
    (directory.checkpoints / "000004/checkpoint-training-0.safetensors").unlink()
    first, rest = arguments(command, directory, tmp_path)
    code, _, err = invoke(command, first, *rest, "--checkpoint", "4")
    assert (code, err) == (0, "")


def spoil(place: str, trained: Trained, prepared: Callable[..., Run]) -> tuple[RunDirectory, str]:
    """A run whose newest checkpoint has, below ``place``, a tensor that is not finite; and the name of that."""
    changes = {"model": MODELS[0]}
    directory, run = trained(changes), prepared(changes)
    checkpoints = Checkpoints(directory.checkpoints, ALONE, run.config)
    checkpoints.restore(run.policy, run.learner)
    state = {**run.policy.state(), **run.learner.state()}
    spoiled = [name for name in state if name.startswith(place) and state[name].numel() > 1][-1]
    state[spoiled].flatten()[-1] = -torch.inf
    checkpoints.save(4, run.policy, run.learner)  # as versions did that did not look
    checkpoints.finish()
    return directory, spoiled


def arguments(command: str, directory: RunDirectory, tmp_path: Path) -> tuple[Path, list[Any]]:
    rest: dict[str, list[Any]] = {"export": [tmp_path / "out"], "sample": ["a prompt"], "eval": [], "run": ["--resume"]}
    options = ["--out", directory.path, "--set", "training.iterations=5"] if command == "run" else []
    return tmp_path / "config.yaml" if command == "run" else directory.path, [*rest[command], *options]
