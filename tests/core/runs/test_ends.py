"""Every observer hears of the end of a run exactly once, wherever it comes: before the first iteration as well."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flowfactory import hookimpl
from flowfactory.config.schema import RunConfig
from flowfactory.errors import Interrupted, RunError, UserError
from flowfactory.runs.train import train
from flowfactory.types import RunInfo

Load = Callable[..., RunConfig]


class Observer:
    """Notes how the run ended; does ``act`` in the hook ``at``."""

    def __init__(self, at: str = "", act: Callable[[], None] = lambda: None) -> None:
        self.at, self.act = at, act
        self.ends: list[Any] = []

    def _reach(self, hook: str) -> None:
        if hook == self.at:
            self.act()

    @hookimpl
    def prepare_tracker(self) -> None:
        self._reach("prepare_tracker")

    @hookimpl
    def prompts_encoded(self, done: int) -> None:
        self._reach("prompts_encoded")

    @hookimpl
    def phase_progressed(self, phase: str) -> None:
        self._reach(phase)

    @hookimpl
    def run_started(self, run: RunInfo) -> None:
        self._reach("run_started")

    @hookimpl
    def evaluation_finished(self, iteration: int) -> None:
        self._reach("evaluation_finished")

    @hookimpl
    def iteration_finished(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._reach("iteration_finished")

    @hookimpl
    def checkpoint_saved(self, iteration: int, path: Path) -> None:
        self._reach("checkpoint_saved")

    @hookimpl
    def run_finished(self, run: RunInfo) -> None:
        self._reach("run_finished")
        self.ends.append("finished")

    @hookimpl
    def run_failed(self, run: RunInfo, error: BaseException) -> None:
        assert run.iterations == 3
        self.ends.append(error)
        self._reach("run_failed")


def fail() -> None:
    raise KeyError("another observer's")


PLACES = (
    *("prepare_tracker", "loading", "prompts_encoded", "encoding", "run_started", "drawing", "judging", "checking"),
    *("evaluating", "evaluation_finished", "iteration_finished", "learning", "saving", "checkpoint_saved"),
)


@pytest.mark.parametrize("place", PLACES)
def test_whatever_hook_another_raises_in_each_hears_of_it_once(load: Load, place: str) -> None:
    before, raising, after = Observer(), Observer(place, fail), Observer()
    with pytest.raises(KeyError) as raised:
        train(load(), observers=[before, raising, after], say=lambda _: None)
    assert before.ends == raising.ends == after.ends == [raised.value]


def test_where_another_cannot_finish_each_hears_of_the_failure_and_none_of_nothing(load: Load) -> None:
    first, raising, last = Observer(), Observer("run_finished", fail), Observer()
    with pytest.raises(KeyError) as raised:
        train(load(), observers=[first, raising, last], say=lambda _: None)
    assert first.ends == raising.ends == [raised.value]  # pluggy calls the last one first
    assert last.ends == ["finished", raised.value]


def interrupt(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["loading", "encoding", "run_started"])
def test_a_signal_before_the_first_iteration_is_an_interruption_that_each_hears_of(load: Load, place: str, number: int) -> None:
    raising, other = Observer(place, interrupt(number)), Observer()
    with pytest.raises(Interrupted) as raised:
        train(load(), observers=[raising, other], say=lambda _: None)
    assert raising.ends == other.ends == [raised.value]


def test_ctrl_c_while_one_closes_what_it_has_keeps_no_other_from_closing(load: Load) -> None:
    slow, other, said = Observer("run_failed", interrupt(signal.SIGINT)), Observer(), list[str]()
    failing = Observer("drawing", fail)
    with pytest.raises(KeyError) as raised:
        train(load(), observers=[other, slow, failing], say=said.append)
    assert slow.ends == other.ends == failing.ends == [raised.value]
    assert [line for line in said if "run_failed" in line] == [
        "warning: observer 1: run_failed: interrupted before it was done"
    ]


REFUSED = {
    "a reward that is not there": ({"rewards": {"bright": {"name": "bright", "refuses": "no server"}}}, UserError, "no server"),
    "a check before the first update": ({"rewards": {"bright": {"name": "bright", "scale": 0.0}}}, RunError, "do not differ"),
    "a reward that raises": ({"rewards": {"bright": {"name": "bright", "raises": "no"}}}, RunError, "no"),
    "scores that are not finite": ({"rewards": {"bright": {"name": "bright", "nan_from": 1}}}, RunError, "finite"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_run_that_cannot_go_on_tells_each(load: Load, why: str) -> None:
    changes, kind, sentence = REFUSED[why]
    observer = Observer()
    with pytest.raises(kind, match=sentence) as raised:
        train(load(changes), observers=[observer], say=lambda _: None)
    assert observer.ends == [raised.value]


def test_one_that_stops_early_has_finished(load: Load) -> None:
    evaluation = {"every": 1, "rewards": {"flat": {"name": "bright", "scale": 0.0}}}  # never better than at first
    observer, told = Observer(), list[str]()
    stop = {"iterations": 3, "early_stop": {"on": "eval/flat/mean", "patience": 1}}
    train(load({"training": stop, "evaluation": evaluation}), observers=[observer], say=told.append)
    assert observer.ends == ["finished"]
    assert sum(line.startswith("held-out score after") for line in told) == 2  # before training, and after iteration 1


def test_a_run_that_is_done_and_resumed_has_finished_again(load: Load) -> None:
    config, observer = load(), Observer()
    train(config, say=lambda _: None)
    train(config, resume=True, observers=[observer], say=lambda _: None)
    assert observer.ends == ["finished"]
