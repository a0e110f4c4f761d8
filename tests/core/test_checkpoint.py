from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import checkpoint
from flowfactory.config import RunConfig
from flowfactory.errors import UserError
from flowfactory.loop import Run, iterate, prepare
from flowfactory.rundir import RunDirectory

Figures = Callable[[RunDirectory], list[dict[str, Any]]]
Trained = Callable[..., RunDirectory]
Invoke = Callable[..., tuple[int, str, str]]
Start = Callable[..., subprocess.Popen[str]]
Prepared = Callable[..., Run]
# slow enough that a signal lands between two iterations, and a checkpoint not after every one of them
SLOW = {"rewards": {"bright": {"name": "bright", "seconds": 0.08}}, "training": {"iterations": 9}}


def wait_for(directory: RunDirectory, iteration: int, process: subprocess.Popen[str]) -> None:
    """Returns when ``metrics.jsonl`` has the record of ``iteration``."""
    deadline = time.monotonic() + 300
    while not any(record["iteration"] >= iteration for record in directory.records()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def weights(path: Path) -> Tensor:
    state = torch.load(path / "training.pt", weights_only=True)["learner"]["optimizer"]["state"]
    return torch.stack([moment for entry in state.values() for moment in (entry["exp_avg"], entry["exp_avg_sq"])])


@pytest.mark.parametrize("after", [5])
def test_a_killed_run_resumes_as_if_it_had_not_been(
    after: int,
    config_file: Callable[..., Path],
    trained: Trained,
    figures: Figures,
    start: Start,
    invoke: Invoke,
    tmp_path: Path,
) -> None:
    whole = figures(trained(SLOW, out="whole"))
    arguments = ("run", config_file(SLOW), "--out", tmp_path / "killed")
    killed = RunDirectory(tmp_path / "killed")
    process = start(*arguments)
    wait_for(killed, after, process)
    time.sleep(random.Random(after).uniform(0, 0.16))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(killed.records()) < len(whole)

    code, out, err = invoke(*arguments, "--resume")
    assert (code, err) == (0, "")
    assert ("resumed after iteration" in out) == (after >= 2)
    assert figures(killed) == whole
    assert torch.equal(weights(killed.checkpoints / "000009"), weights(tmp_path / "whole/checkpoints/000009"))


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_its_iteration_and_resumes_as_if_it_had_not_been(
    which: signal.Signals,
    config_file: Callable[..., Path],
    trained: Trained,
    figures: Figures,
    start: Start,
    invoke: Invoke,
    tmp_path: Path,
) -> None:
    whole = figures(trained(SLOW, out="whole"))
    arguments = ("run", config_file(SLOW), "--out", tmp_path / "stopped")
    stopped = RunDirectory(tmp_path / "stopped")
    process = start(*arguments)
    wait_for(stopped, 2, process)
    process.send_signal(which)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    done = stopped.records()[-1]["iteration"]
    assert 2 <= done < 9
    assert err == f"stopped after iteration {done}; continue with --resume\n"
    assert checkpoint.find(stopped.checkpoints).name == f"{done:06d}"

    code, out, err = invoke(*arguments, "--resume")
    assert (code, err) == (0, "")
    assert f"resumed after iteration {done} from" in out
    assert figures(stopped) == whole


def test_a_crash_before_the_rename_leaves_the_previous_checkpoint_whole(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = prepared()
    first = checkpoint.save(tmp_path, 1, run.policy, run.learner)

    def crash(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(os, "rename", crash)
    with pytest.raises(MemoryError):
        checkpoint.save(tmp_path, 2, run.policy, run.learner)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob(".writing-*")] == [".writing-000002"]
    assert checkpoint.latest(tmp_path) == first
    third = checkpoint.save(tmp_path, 3, run.policy, run.learner)
    assert not list(tmp_path.glob(".writing-*"))
    assert checkpoint.latest(tmp_path) == third


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "000004").mkdir()
    assert checkpoint.latest(tmp_path) is None


def test_what_is_not_there_is_refused_with_what_is(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared()
    with pytest.raises(UserError, match=r"holds no checkpoint$"):
        checkpoint.find(tmp_path)
    for iteration in (2, 10):
        checkpoint.save(tmp_path, iteration, run.policy, run.learner)
    assert checkpoint.find(tmp_path).name == "000010"
    assert checkpoint.find(tmp_path, 2).name == "000002"
    with pytest.raises(UserError, match=r"holds no checkpoint of iteration 3; there is 2, 10$"):
        checkpoint.find(tmp_path, 3)


def test_saving_an_iteration_again_replaces_it(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared()
    checkpoint.save(tmp_path, 1, run.policy, run.learner)
    with torch.no_grad():
        run.policy.parameters["transformer.p"].fill_(3.0)
    path = checkpoint.save(tmp_path, 1, run.policy, run.learner)
    with torch.no_grad():
        run.policy.parameters["transformer.p"].fill_(0.0)
    assert checkpoint.restore(path, run.policy, run.learner) == 1
    assert run.policy.parameters["transformer.p"].item() == 3.0


@pytest.mark.parametrize("model", [{"name": "net", "train": "full"}, {"name": "net"}], ids=["full", "lora"])
def test_restoring_brings_back_weights_optimizer_and_random_state(
    model: dict[str, Any], load: Callable[..., RunConfig], tmp_path: Path
) -> None:
    def fresh() -> Run:
        run = prepare(load({"model": model}))
        run.assembly.hooks.run_started(run.info, run.policy)
        return run

    one = fresh()
    iterate(one, 0)
    torch.manual_seed(3)
    path = checkpoint.save(tmp_path, 1, one.policy, one.learner)
    drawn = torch.rand(3)
    expected = iterate(one, 1)

    other = fresh()
    torch.manual_seed(4)
    assert checkpoint.restore(path, other.policy, other.learner) == 1
    assert torch.equal(torch.rand(3), drawn)
    again = iterate(other, 1)
    assert {k: v for k, v in again.items() if not k.startswith(("seconds", "peak"))} == {
        k: v for k, v in expected.items() if not k.startswith(("seconds", "peak"))
    }
    for name, parameter in one.policy.parameters.items():
        assert torch.equal(parameter, other.policy.parameters[name])


def test_resuming_with_another_config_is_refused_and_names_the_key(
    config_file: Callable[..., Path], trained: Trained, invoke: Invoke, tmp_path: Path
) -> None:
    trained()
    before = (tmp_path / "run/config.yaml").read_text()
    arguments = ("run", config_file(), "--out", tmp_path / "run", "--resume")
    code, _, err = invoke(*arguments, "--set", "seed=8")
    assert code == 2
    assert "was run with another config: seed (7 then, 8 now)" in err
    code, _, err = invoke(*arguments, "--set", "rewards.bright.scale=2")
    assert code == 2
    assert "rewards.bright.scale (1.0 then, 2.0 now)" in err
    assert (tmp_path / "run/config.yaml").read_text() == before


def test_a_second_run_into_the_same_directory_is_refused(
    config_file: Callable[..., Path], trained: Trained, figures: Figures, invoke: Invoke, tmp_path: Path
) -> None:
    directory = trained()
    before = directory.metrics.read_text()
    code, out, err = invoke("run", config_file(), "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path / 'run'} already holds a run; continue it with --resume, or choose another --out\n"
    assert directory.metrics.read_text() == before


def test_a_finished_run_can_be_given_more_iterations(trained: Trained, figures: Figures) -> None:
    trained({"training": {"iterations": 3}})
    longer = trained({"training": {"iterations": 5}}, resume=True)
    whole = trained({"training": {"iterations": 5}}, out="whole")
    assert figures(longer)[4:] == figures(whole)[4:]
    assert [record["iteration"] for record in longer.records()] == [0, 1, 2, 3, 4, 5]


def test_resuming_a_finished_run_changes_nothing(trained: Trained) -> None:
    directory = trained()
    before = directory.metrics.read_text()
    trained(resume=True)
    assert directory.metrics.read_text() == before


def test_resuming_where_nothing_was_saved_starts_at_the_beginning(trained: Trained, figures: Figures) -> None:
    assert figures(trained(resume=True)) == figures(trained(out="other"))


def test_a_record_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append({"iteration": 1, "loss": 0.5})
    directory.append({"iteration": 2, "loss": 0.25})
    with directory.metrics.open("a") as file:
        file.write('{"iteration": 3, "lo')
    assert directory.records() == [{"iteration": 1, "loss": 0.5}, {"iteration": 2, "loss": 0.25}]
    directory.rewind(1)
    assert [json.loads(line) for line in directory.metrics.read_text().splitlines()] == [{"iteration": 1, "loss": 0.5}]
