"""What a run shows while it goes on, by a clock that the tests hold."""

from __future__ import annotations

import io
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from flowfactory import hookimpl
from flowfactory.config.schema import RunConfig
from flowfactory.reward_trends import direction
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.terminal import Terminal
from flowfactory.runs.terminal.memory import Memory, memory_in_use
from flowfactory.runs.terminal.pace import Pace
from flowfactory.runs.terminal.state import RunState
from flowfactory.runs.terminal.view import render
from flowfactory.runs.terminal.words import sparkline, tell_duration
from flowfactory.runs.train import train
from flowfactory.types import RunInfo

POLICY: Any = SimpleNamespace(device=torch.device("cpu"))
METRICS = {"reward/bright/mean": 0.25, "loss": 0.001, "seconds/sample": 2.0, "seconds/update": 2.0, "peak_memory_mb": 2048.0}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def info(load: Callable[..., RunConfig]) -> RunInfo:
    return RunInfo(Path("run"), load({"training": {"iterations": 10}, "evaluation": {"every": 5}}), 10)


def iterate(terminal: Terminal, clock: Clock, number: int, seconds: float, metrics: Mapping[str, float] = METRICS) -> None:
    """An iteration of ``seconds``, half of them to draw and half to learn."""
    for phase in ("drawing", "learning"):
        for done in (0, 8, 16):
            terminal.phase_progressed(phase, done, 16)
            clock.now += seconds / 6
    terminal.iteration_finished(number, metrics)


def shown(state: RunState, now: float, width: int, memory: Memory | None = None, encoding: str = "utf-8") -> list[str]:
    screen = io.StringIO()
    Console(file=screen, width=width).print(render(state, now, width, memory, encoding == "utf-8"))
    return screen.getvalue().rstrip("\n").split("\n")


def state_of(terminal: Terminal) -> RunState:
    return terminal._state


WIDTHS = [40, 60, 80, 160]


@pytest.mark.parametrize("seconds", [0.5, 45.0, 3000.0])
def test_the_time_left_is_there_after_one_iteration_whatever_it_takes(info: RunInfo, clock: Clock, seconds: float) -> None:
    terminal = Terminal(Console(file=io.StringIO()), clock=clock)
    terminal.run_started(info, POLICY)
    assert state_of(terminal).seconds_left(clock()) is None
    iterate(terminal, clock, 1, seconds)
    assert state_of(terminal).seconds_left(clock()) == pytest.approx(9 * seconds)
    terminal.phase_progressed("drawing", 0, 16)
    clock.now += seconds / 2  # and it goes down within an iteration
    assert state_of(terminal).seconds_left(clock()) == pytest.approx(8.5 * seconds)


def test_evaluations_and_checks_count_as_often_as_they_are_still_to_come(info: RunInfo, clock: Clock) -> None:
    terminal = Terminal(Console(file=io.StringIO()), clock=clock)
    terminal.run_started(info, POLICY)
    terminal.phase_progressed("drawing", 0, 16)
    clock.now += 3
    terminal.phase_progressed("checking", 0, 0)
    clock.now += 50  # once
    terminal.phase_progressed("evaluating", 0, 2)
    clock.now += 100
    terminal.iteration_finished(0, {"eval/bright/mean": 0.5})
    terminal.phase_progressed("learning", 0, 16)
    clock.now += 7
    terminal.iteration_finished(1, METRICS)
    # nine iterations of ten seconds, and evaluations after the fifth and the tenth
    assert state_of(terminal).seconds_left(clock()) == pytest.approx(9 * 10 + 2 * 100)


def test_the_pace_is_that_of_the_last_iterations() -> None:
    pace, now = Pace(0.0), 0.0
    for seconds in [100.0] * 5 + [2.0] * 10:
        pace = pace.enter("drawing", now)
        now += seconds
        pace = pace.finish(now, whole=True)
    assert pace.seconds_left(now, 3, {}) == pytest.approx(6.0)
    assert pace.seconds_left(now, 0, {}) is None


@pytest.mark.parametrize("width", WIDTHS)
def test_the_view_fits_every_width_and_says_what_is_at_hand(info: RunInfo, clock: Clock, width: int) -> None:
    terminal = Terminal(Console(file=io.StringIO()), clock=clock)
    terminal.run_started(info, POLICY)
    terminal.iteration_finished(0, {"eval/bright/mean": 0.125})
    for number in range(1, 8):
        means = {"reward/bright/mean": 0.1 * number, "reward/" + "long" * 20 + "/mean": -1.0, "eval/bright/mean": 0.25}
        iterate(terminal, clock, number, 60.0, METRICS | means)
    terminal.say("warning: " + "much is to be told, " * 10)
    terminal.phase_progressed("drawing", 8, 16)
    clock.now += 90
    lines = shown(state_of(terminal), clock(), width, Memory(2**30, 4 * 2**30))
    assert max(map(len, lines)) <= width
    assert len(lines) == 6  # each thing has its line
    assert re.match(r"training .*━.* 7/10 2 min left", lines[0])
    assert re.match(r"drawing .*━.* 8/16 2 min", lines[1])
    assert "bright" in lines[2]
    assert "0.7000" in lines[2]
    assert lines[4].startswith("memory 1.0 GiB of 4.0 GiB")
    assert lines[5].startswith("warning: much is to be told")
    if width >= 80:
        assert "↗ ▁▂▃▅▆▇█ held out 0.1250 → 0.2500" in lines[2]
        assert lines[0].endswith("2 min left, 8 min so far")


def test_where_the_encoding_has_no_signs_words_stand_for_them(info: RunInfo, clock: Clock) -> None:
    terminal = Terminal(Console(file=io.StringIO()), clock=clock)
    terminal.run_started(info, POLICY)
    for number in range(1, 8):
        iterate(terminal, clock, number, 60.0, {"reward/bright/mean": -0.1 * number, "eval/bright/mean": 0.1 * number})
    lines = shown(state_of(terminal), clock(), 80, encoding="ascii")
    assert re.match(r"bright -0\.7000 down +held out 0\.1000 to 0\.7000", lines[2])
    assert "".join(lines[2:]).isascii()


def test_many_rewards_leave_room_for_what_moves(info: RunInfo, clock: Clock) -> None:
    terminal = Terminal(Console(file=io.StringIO()), clock=clock)
    terminal.run_started(info, POLICY)
    iterate(terminal, clock, 1, 1.0, {f"reward/r{number}/mean": 1.0 for number in range(30)})
    lines = shown(state_of(terminal), clock(), 80)
    assert len(lines) < 15
    assert lines[-1].strip() == "and 22 more"


def test_warnings_stay_the_last_three_of_them_and_none_twice(clock: Clock) -> None:
    terminal = Terminal(Console(file=io.StringIO()), clock=clock)
    for sentence in ("warning: a", "warning: b", "told in passing", "preflight: warning: c", "warning: b", "warning: d"):
        terminal.say(sentence)
    assert shown(state_of(terminal), clock(), 80)[-4:] == [
        "preflight: warning: c",
        "warning: b",
        "warning: d",
        "1 earlier warnings are above",
    ]


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


def test_a_terminal_gets_a_view_that_is_taken_away_and_one_line_in_its_place(
    info: RunInfo, screen: io.StringIO, clock: Clock
) -> None:
    terminal = Terminal(Console(file=screen, force_terminal=True, width=120), clock=clock)
    terminal.phase_progressed("encoding", 150, 300)
    terminal.run_started(info, POLICY)
    iterate(terminal, clock, 1, 40.0)
    terminal.say("[bold] is no markup")
    terminal.phase_progressed("drawing", 8, 16)
    time.sleep(0.4)  # in which it is drawn at least once
    terminal.run_failed()
    terminal.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "encoding" in plain
    assert "150/300" in plain
    assert "8/16" in plain
    assert "6 min left" in plain
    assert "[bold] is no markup" in plain
    assert plain.rstrip().endswith("iteration 1/10  bright 0.2500  loss 1.000e-03  4.0 images/s  2.0 GiB  6 min left")
    assert screen.getvalue().count("\x1b[?25h") == 1  # the cursor is given back


def test_without_a_terminal_short_iterations_have_a_line_each_and_phases_none(
    info: RunInfo, screen: io.StringIO, clock: Clock
) -> None:
    terminal = Terminal(Console(file=screen, width=40), clock=clock)
    terminal.phase_progressed("encoding", 1, 300)
    terminal.run_started(info, POLICY)
    terminal.iteration_finished(0, {"eval/bright/mean": 0.5})
    for number in range(1, 11):
        iterate(terminal, clock, number, 12.0, METRICS | {"reward/bright/mean": 0.1 * number})
    lines = screen.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"iteration {number}/10" for number in range(1, 11)]
    assert lines[0] == "iteration 1/10  bright 0.1000  loss 1.000e-03  4.0 images/s  2.0 GiB  2 min left"
    assert lines[7] == "iteration 8/10  bright 0.8000 rising  loss 1.000e-03  4.0 images/s  2.0 GiB  24 s left"
    assert "\x1b" not in screen.getvalue()


def test_without_a_terminal_a_long_iteration_has_a_line_a_phase(info: RunInfo, screen: io.StringIO, clock: Clock) -> None:
    terminal = Terminal(Console(file=screen), clock=clock)
    terminal.run_started(info, POLICY)
    for phase in ("drawing", "learning"):
        for done in range(64):
            terminal.phase_progressed(phase, done, 64)
            clock.now += 5.0  # more than five minutes each
    lines = screen.getvalue().splitlines()
    assert lines == ["iteration 1/10: drawing 12/64", "iteration 1/10: learning 0/64"]


def test_a_phase_of_hours_has_a_line_now_and_then(info: RunInfo, screen: io.StringIO, clock: Clock) -> None:
    terminal = Terminal(Console(file=screen), clock=clock)
    terminal.run_started(info, POLICY)
    for done in range(1000):
        terminal.phase_progressed("drawing", done, 1000)
        clock.now += 10.8  # three hours
    assert 15 <= len(screen.getvalue().splitlines()) <= 20


@pytest.mark.parametrize("force_terminal", [False, True])
def test_quiet_prints_warnings_and_what_is_shown_at_the_end(
    info: RunInfo, screen: io.StringIO, clock: Clock, force_terminal: bool
) -> None:
    terminal = Terminal(Console(file=screen, force_terminal=force_terminal, width=200), quiet=True, clock=clock)
    terminal.phase_progressed("loading", 0, 0)
    terminal.run_started(info, POLICY)
    terminal.say("preflight: all is well")
    terminal.say("preflight: warning: rounding has a say")
    iterate(terminal, clock, 1, 1000.0)
    terminal.say("warning: flat")
    terminal.say("stopping after this iteration, which is saved; once more to stop at once")
    terminal.run_finished()
    terminal.show("report: r.html")
    assert screen.getvalue().splitlines() == [
        "preflight: warning: rounding has a say",
        "warning: flat",
        "stopping after this iteration, which is saved; once more to stop at once",
        "report: r.html",
    ]


def test_a_quiet_run_says_how_it_ended(
    config_file: Callable[..., Path], invoke: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, err = invoke("run", config_file({"evaluation": {"every": 2}}), "--out", tmp_path / "run", "--quiet")
    assert (code, err) == (0, "")
    *_, held_out, report = [line for line in out.splitlines() if not line.startswith(("warning: ", "doctor: "))]
    assert held_out.startswith("held-out bright: ")
    assert report == f"report: {tmp_path / 'run' / 'report.html'}"
    assert not re.search("^(iteration|preflight: [^w]|held-out score)", out, re.MULTILINE)


class Phases:
    """Notes what it is told of phases."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    @hookimpl
    def phase_progressed(self, phase: str, done: int, total: int) -> None:
        self.told.append((phase, done, total))

    @hookimpl
    def iteration_finished(self, iteration: int) -> None:
        self.told.append(("iteration", iteration, 0))


@pytest.fixture
def phases(load: Callable[..., RunConfig]) -> Callable[..., list[tuple[str, int, int]]]:
    def run(changes: Mapping[str, Any]) -> list[tuple[str, int, int]]:
        observer = Phases()
        train(load(changes), observers=[observer], say=lambda _: None)
        return observer.told

    return run


def in_order(told: list[tuple[str, int, int]]) -> list[str]:
    """The phases in their order, each once where it goes on."""
    names = [name for name, _, _ in told]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def test_each_phase_is_told_from_its_beginning_to_its_end(phases: Callable[..., list[tuple[str, int, int]]]) -> None:
    changes = {
        "sampling": {"batch_size": 4},
        "training": {"iterations": 2, "epochs": 2},
        "evaluation": {"every": 1, "members": 2, "batch_size": 1},
        "output": {"checkpoint_every": 1},
    }
    told = phases(changes)
    between = ["drawing", "judging"] * 5  # four groups of four, each judged when it is drawn, and then what is left of it
    assert in_order(told) == [
        *("loading", "encoding", *between[:8], "checking", "evaluating", "iteration", "learning"),
        *("evaluating", "iteration", "saving", *between[:8], "learning", "evaluating", "iteration", "saving"),
    ]
    first = told[: told.index(("iteration", 1, 0))]
    assert [done for name, done, total in first if name == "drawing" and total == 16] == [0, 4, 8, 12, 16]
    judged = [done for name, done, total in first if name == "judging" and total == 16]
    assert (judged[:4], judged[-1]) == ([0, 4, 8, 12], 16)
    assert [done for name, done, total in first if name == "learning"] == list(range(0, 33, 4))  # both epochs
    assert [(done, total) for name, done, total in told if name == "evaluating"] == [(n, 4) for n in range(5)] * 3
    assert [(done, total) for name, done, total in told if name == "encoding"][-1] == (7, 7)


def test_whoever_watches_a_run_does_not_change_it(
    load: Callable[..., RunConfig], figures: Callable[[RunDirectory], list[dict[str, Any]]]
) -> None:
    alone = train(load({}, out="alone"), say=lambda _: None)
    terminal = Terminal(Console(file=io.StringIO(), force_terminal=True))
    watched = train(load({}, out="watched"), observers=[terminal, Phases()], say=terminal.say)
    assert figures(alone) == figures(watched)


def test_a_run_that_is_stopped_gives_the_cursor_back(load: Callable[..., RunConfig], screen: io.StringIO) -> None:
    class Stop:
        @hookimpl
        def iteration_finished(self, iteration: int) -> None:
            if iteration:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    terminal = Terminal(Console(file=screen, force_terminal=True, width=100))
    with pytest.raises(BaseException, match="stopped at once"):
        train(load(), observers=[terminal, Stop()], say=terminal.say)
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h") == 1


def test_a_trend_is_one_when_it_is_more_than_chance() -> None:
    assert direction([0.1 * n for n in range(5)]) == 0  # too few
    assert direction([0.1 * n for n in range(6)]) == 1
    assert direction([-0.1 * n for n in range(30)]) == -1
    assert direction([(-1) ** n for n in range(30)]) == 0
    assert direction([1.0] * 30) == 0
    assert direction([*range(100), *[200 - n for n in range(20)]]) == -1  # now, whatever was before


def test_a_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == "▁▂▃▄▅▆▇█"
    assert sparkline([9, 0, 7], 2) == "▁█"
    assert sparkline([1, 1], 9) == "▄▄"
    assert sparkline([1, float("nan"), 2], 9) == "▁█"
    assert sparkline([1], 9) == sparkline([1, 2], 0) == ""


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3580, "1 h 00 min"), (11100, "3 h 05 min"), (187200, "2 d 4 h")],
)
def test_durations_are_as_exact_as_one_wants_to_know(seconds: float, told: str) -> None:
    assert tell_duration(seconds) == told


def test_the_memory_of_this_process_is_known() -> None:
    found = memory_in_use(torch.device("cpu"))
    assert found is not None
    assert found.total is None
    assert 50 * 2**20 < found.used < 2**40
