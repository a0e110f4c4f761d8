"""How a run ends is heard by its observers, and stands in run.json and in the report, however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from flowfactory import hookimpl
from flowfactory.config.schema import RunConfig
from flowfactory.errors import Interrupted, RunError, UserError
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.lock import LOCK
from flowfactory.runs.report.page import write_report
from flowfactory.runs.train import train
from flowfactory.types import RunInfo, SamplingPlan

Load = Callable[..., RunConfig]


class Observer:
    """Does ``act`` after iteration ``at``, and remembers how the run ended."""

    def __init__(self, act: Callable[[], None] = lambda: None, at_end: Callable[[], None] = lambda: None, at: int = 2) -> None:
        self.act, self.at_end, self.at = act, at_end, at
        self.ends: list[Any] = []

    @hookimpl(trylast=True)  # when the tracker has heard of it
    def iteration_finished(self, iteration: int, metrics: Mapping[str, float]) -> None:
        if iteration == self.at:
            self.act()

    @hookimpl
    def run_finished(self, run: RunInfo) -> None:
        self.ends.append("finished")

    @hookimpl
    def run_failed(self, run: RunInfo, error: BaseException) -> None:
        self.ends.append(error)
        self.at_end()


def fail(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def send(*numbers: int) -> Callable[[], None]:
    def act() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    return act


def end_of(directory: RunDirectory) -> dict[str, Any]:
    facts = json.loads(directory.facts.read_text())
    assert "under_way" not in facts
    assert "torch" in facts["versions"]
    end: dict[str, Any] = facts["end"]
    return end


ENDS = {
    "RunError": (fail(RunError("the loss is not finite")), RunError, "failed", "the loss is not finite; "),
    "UserError": (fail(UserError("no such colour")), UserError, "failed", "no such colour"),
    "any exception": (fail(KeyError("x")), KeyError, "failed", "'x'"),
    "SystemExit": (fail(SystemExit(0)), RunError, "failed", "observer 0: Observer.iteration_finished ("),
    "Ctrl+C": (send(signal.SIGINT), Interrupted, "stopped", "stopped after iteration 2; continue with --resume"),
    "SIGTERM": (send(signal.SIGTERM), Interrupted, "stopped", "stopped after iteration 2; continue with --resume"),
    "Ctrl+C twice": (send(signal.SIGINT, signal.SIGINT), Interrupted, "stopped", "stopped at once; "),
    "SIGTERM twice": (send(signal.SIGTERM, signal.SIGTERM), Interrupted, "stopped", "stopped at once; "),
    "full disk": (fail(OSError(28, "No space left on device", "/x")), RunError, "failed", "/x cannot be written (No space"),
}


@pytest.mark.parametrize("how", ENDS)
def test_however_a_run_ends_observers_the_report_and_the_lock_hear_of_it(load: Load, how: str) -> None:
    act, kind, told, sentence = ENDS[how]
    observer, second = Observer(act), Observer()
    config = load({"output": {"trackers": ["tensorboard"]}, "training": {"iterations": 5}})
    directory = RunDirectory(config.output.dir)
    locked: list[bool] = []
    observer.at_end = lambda: locked.append((directory.path / LOCK).exists())
    with pytest.raises(kind) as raised:
        train(config, observers=[observer, second], say=lambda _: None)
    assert observer.ends == second.ends == [raised.value]
    assert locked == [True]
    end = end_of(directory)
    assert end["how"] == told
    assert end["sentence"].startswith(sentence)
    assert "The run was stopped: " in (page := directory.report.read_text()) or "The run failed: " in page
    assert [record["iteration"] for record in directory.records(pytest.fail)] == [0, 1, 2]
    assert not (directory.path / LOCK).exists()
    events = EventAccumulator(str(directory.path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name in ("run lock", "report")]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("checkpoint_every", [2, 3], ids=["before a checkpoint", "before an iteration"])
def test_a_run_whose_directory_was_moved_away_leaves_alone_what_another_makes_in_its_place(
    load: Load, tmp_path: Path, checkpoint_every: int
) -> None:
    changes = {"output": {"trackers": ["tensorboard"], "checkpoint_every": checkpoint_every}, "evaluation": {"every": 1}}
    config = load(changes | {"training": {"iterations": 6}})
    made: dict[Path, bytes] = {}

    def replace() -> None:
        config.output.dir.rename(tmp_path / "moved")
        train(load(changes), say=lambda _: None)
        made.update(files(config.output.dir))

    observer, said = Observer(replace), list[str]()
    told = rf"^{config.output.dir} was taken over by another run, which has ended; this run leaves it alone$"
    with pytest.raises(RunError, match=told):
        train(config, observers=[observer], say=said.append)
    assert files(config.output.dir) == made
    assert [record["iteration"] for record in RunDirectory(config.output.dir).records(pytest.fail)] == [0, 1, 2, 3]
    assert not [sentence for sentence in said if "run_failed" in sentence]


@pytest.mark.parametrize("checkpoint_every", [2, 3], ids=["before a checkpoint", "before an iteration"])
def test_a_run_directory_that_is_gone_costs_one_line(load: Load, checkpoint_every: int) -> None:
    changes = {"output": {"trackers": ["tensorboard"], "checkpoint_every": checkpoint_every}, "evaluation": {"every": 1}}
    config, said = load(changes), list[str]()
    observer = Observer(lambda: shutil.rmtree(config.output.dir))
    told = rf"^{config.output.dir} is gone; leave a run directory where it is until its run has ended$"
    with pytest.raises(RunError, match=told):
        train(config, observers=[observer], say=said.append)
    assert not config.output.dir.exists()
    assert not [sentence for sentence in said if "run_failed" in sentence]


@pytest.mark.parametrize(
    ("before", "stage"),
    [("finished", "load"), ("finished", "first iteration"), ("stopped", "first iteration"), ("failed", "load")],
)
def test_a_resume_that_makes_no_iteration_leaves_the_end_that_the_metrics_have(load: Load, before: str, stage: str) -> None:
    config = load()
    acts = {"finished": send(), "stopped": send(signal.SIGTERM), "failed": fail(ZeroDivisionError("the end"))}
    with nullcontext() if before == "finished" else pytest.raises((Interrupted, ZeroDivisionError)):
        train(config, observers=[Observer(acts[before])], say=lambda _: None)
    directory = RunDirectory(config.output.dir)
    end, figures = end_of(directory), directory.metrics.read_bytes()
    page = write_report(directory.path).read_text()
    assert end["how"] == before
    more = load({"training": {"iterations": 4}})
    with pytest.raises(RunError, match="the server is down"):
        train(more, resume=True, observers=[Down(stage)], say=lambda _: None)
    assert end_of(directory) == end
    assert directory.metrics.read_bytes() == figures
    assert ("The run failed" in directory.report.read_text()) == ("The run failed" in page) == (before == "failed")
    with pytest.raises(ZeroDivisionError):
        train(more, resume=True, observers=[Observer(at=4, act=fail(ZeroDivisionError("later")))], say=lambda _: None)
    assert end_of(directory)["sentence"] == "later"


def test_an_end_does_not_stay_where_the_metrics_it_was_about_are_taken_away(load: Load, trained: Load) -> None:
    directory = trained()
    shutil.rmtree(directory.checkpoints / "000003")
    with pytest.raises(RunError, match="the server is down"):
        train(load(), resume=True, observers=[Down("first iteration")], say=lambda _: None)
    assert [record["iteration"] for record in directory.records()] == [0, 1, 2]
    assert end_of(directory)["how"] == "failed"


def test_of_runs_that_come_to_nothing_the_last_is_told(load: Load) -> None:
    for told in ("one", "two"):
        with pytest.raises(RunError, match=told):
            train(load(), observers=[Down("load", told)], say=lambda _: None)
        assert json.loads(RunDirectory(load().output.dir).facts.read_text())["end"]["sentence"].startswith(told)


class Down:
    """Fails at a ``stage`` of a run, before an iteration of it is done."""

    def __init__(self, stage: str, told: str = "the server is down") -> None:
        self.stage, self.told = stage, told

    @hookimpl
    def run_started(self, run: RunInfo) -> None:
        if self.stage == "load":
            raise RunError(self.told)

    @hookimpl
    def plan(self, iteration: int, plan: SamplingPlan) -> SamplingPlan:
        raise RunError(self.told)


def test_a_run_that_is_resumed_to_its_end_has_finished(load: Load) -> None:
    config = load()
    with pytest.raises(ZeroDivisionError):
        train(config, observers=[Observer(fail(ZeroDivisionError()))], say=lambda _: None)
    directory, observer = RunDirectory(config.output.dir), Observer()
    assert "The run failed: ZeroDivisionError" in directory.report.read_text()
    train(config, resume=True, observers=[observer], say=lambda _: None)
    assert observer.ends == ["finished"]
    assert end_of(directory)["how"] == "finished"


@pytest.mark.parametrize("problem", [ValueError("no disk"), SystemExit(3)])
def test_an_observer_that_fails_at_the_end_hides_neither_the_error_nor_the_end_from_others(
    load: Load, problem: BaseException
) -> None:
    bad, good, said = Observer(at_end=fail(problem)), Observer(fail(RunError("the loss is not finite"))), list[str]()
    with pytest.raises(RunError, match=r"^the loss is not finite") as raised:
        train(load(), observers=[good, bad], say=said.append)
    assert good.ends == bad.ends == [raised.value]
    assert [line.partition(" (")[0] for line in said if "run_failed" in line] == [
        f"warning: observer 1: run_failed: {type(problem).__name__}: {problem}"
    ]


def test_a_report_that_cannot_be_written_does_not_hide_the_error(load: Load) -> None:
    config = load()
    (config.output.dir / "report.html").mkdir(parents=True)
    with pytest.raises(RunError, match=r"^the loss is not finite"):
        train(config, observers=[Observer(fail(RunError("the loss is not finite")))], say=lambda _: None)


def test_a_run_that_is_refused_leaves_no_trace_in_the_one_that_is_there(
    load: Load, trained: Callable[..., RunDirectory]
) -> None:
    directory = trained()
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="already holds a run"):
        train(load(), say=lambda _: None)
    with pytest.raises(UserError, match="was run with another config"):
        train(load({"training": {"updates": 1}}), resume=True, say=lambda _: None)
    assert {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()} == before


def test_a_second_sigterm_ends_a_real_run_with_its_report_and_without_a_lock(
    config_file: Callable[..., Path], start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    changes = {"rewards": {"bright": {"name": "bright", "seconds": 1.0}}, "training": {"iterations": 50}}
    process = start("run", config_file(changes), "--out", tmp_path / "run")
    assert process.stdout is not None
    assert next(line for line in process.stdout if line.startswith("iteration 1/50"))
    time.sleep(0.5)  # into the second one
    process.send_signal(signal.SIGTERM)
    assert next(line for line in process.stdout if line.startswith("stopping after this iteration"))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    told = "stopped at once; nothing was saved yet"
    assert (process.returncode, err) == (130, f"{told}\n")
    directory = RunDirectory(tmp_path / "run")
    assert end_of(directory)["sentence"] == told
    assert "The run was stopped: stopped at once" in directory.report.read_text()
    assert not (directory.path / LOCK).exists()


KILLED = """
import os, sys
from flowfactory import hookimpl
from flowfactory.config import loading
from flowfactory.runs.train import train

class Kill:
    @hookimpl
    def iteration_finished(self, iteration):
        if iteration == 1:
            os.kill(os.getpid(), 9)

train(loading.load(sys.argv[1], out=sys.argv[2]), observers=[Kill()])
"""


def test_a_killed_run_says_in_its_report_that_no_end_is_known(load: Load, tmp_path: Path) -> None:
    config = load()
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "config.yaml", config.output.dir], check=False)
    assert done.returncode == -signal.SIGKILL
    directory = RunDirectory(config.output.dir)
    assert "The run was under way when this page was made, or it was killed." in write_report(directory.path).read_text()
