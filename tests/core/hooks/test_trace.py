"""FLOWFACTORY_TRACE: which calls are printed, in which order, and what is not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pluggy
import pytest
import torch

from flowfactory.discovery.hook_trace import trace_calls
from flowfactory.discovery.specs import PROJECT, hookimpl
from flowfactory.hooks.calls import Hooks
from flowfactory.hooks.manager import make_manager
from flowfactory.types import Evaluation, RunInfo, Step

LINE = re.compile(r"trace: +\d+\.\d\d ms  ( *)(.+)")


class Model:
    @hookimpl
    def log_prob(self, step: Step) -> Evaluation:
        return Evaluation(torch.full((2,), 12345.0))


class Algorithm:
    def __init__(self, hooks: Callable[[], Hooks]) -> None:
        self.hooks = hooks

    @hookimpl
    def comparisons(self, experience: Any) -> Iterator[Any]:
        for _ in range(2):
            self.hooks().log_prob(None)  # type: ignore[arg-type]
            yield (None, {})


class Watcher:
    @hookimpl(wrapper=True)
    def log_prob(self) -> Any:
        return (yield)

    @hookimpl
    def run_started(self, run: RunInfo) -> None:
        raise ZeroDivisionError("12345")


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], Hooks]:
    def make(value: str | None) -> Hooks:
        monkeypatch.delenv("FLOWFACTORY_TRACE", raising=False)
        if value is not None:
            monkeypatch.setenv("FLOWFACTORY_TRACE", value)
        made = Hooks(make_manager({"model": Model(), "algorithm": Algorithm(lambda: made), "tracker 0": Watcher()}))
        return made

    return make


def told(text: str) -> list[tuple[int, str]]:
    """How far each line is indented, and what it says."""
    return [(len(found[1]) // 2, found[2]) for line in text.splitlines() if (found := LINE.fullmatch(line))]


def test_a_call_is_a_line_below_those_that_it_made(
    hooks: Callable[..., Hooks], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = hooks("1")
    monkeypatch.setattr("flowfactory.hooks.calls._is_comparison", lambda asked: True)
    assert len(list(made.comparisons(None))) == 2  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        made.run_started(RunInfo(Path(), None, 1), None)  # type: ignore[arg-type]
    err = capsys.readouterr().err
    assert told(err) == [
        (1, "log_prob: model within tracker 0"),
        (1, "log_prob: model within tracker 0"),
        (0, "comparisons: algorithm, 2 yielded"),
        (0, "run_started: tracker 0, raised ZeroDivisionError"),
    ]
    assert "12345" not in err, "what is passed is printed"


def test_what_yields_is_told_when_nobody_asks_for_more(
    hooks: Callable[..., Hooks], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowfactory.hooks.calls._is_comparison", lambda asked: True)
    answers = hooks("1").comparisons(None)  # type: ignore[arg-type]
    next(answers)
    assert told(capsys.readouterr().err) == [(1, "log_prob: model within tracker 0")]
    del answers
    assert told(capsys.readouterr().err) == [(0, "comparisons: algorithm, 1 yielded")]


@pytest.mark.parametrize("value", [None, "", "0"])
def test_without_it_nothing_is_installed_nor_printed(
    value: str | None, hooks: Callable[..., Hooks], capsys: pytest.CaptureFixture[str]
) -> None:
    made = hooks(value)
    made.log_prob(None)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    untouched = pluggy.PluginManager(PROJECT)._inner_hookexec
    assert made._manager._inner_hookexec is untouched


def test_a_rank_says_which_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    manager = make_manager({"model": Model()})
    trace_calls(manager, {"FLOWFACTORY_TRACE": "1"})
    manager.hook.log_prob(step=None)
    assert re.fullmatch(r"trace rank 3: +\d+\.\d\d ms  log_prob: model\n", capsys.readouterr().err)


def test_a_run_prints_its_hooks_on_standard_error_alone(
    config_file: Callable[..., Path], invoke: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_file({"training": {"iterations": 1}})
    monkeypatch.setenv("FLOWFACTORY_TRACE", "1")
    code, out, err = invoke("run", config, "--out", "run")
    assert code == 0
    assert "trace" not in out
    lines = [said for _, said in told(err)]
    for hook in ("register_components: core", "load: model", "sample: model", "compute_reward: bright"):
        assert hook in lines
    assert any(re.fullmatch(r"update: algorithm, \d+ yielded", line) for line in lines)
