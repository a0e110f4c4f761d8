"""``FLOWFACTORY_TRACE=1``: a line to standard error for each call of a hook, with how long it took.

A line comes when its call ends, so that what was called within it stands above, further to the right. What a hook yields, such
as the losses of ``update``, is computed while core asks for it: its line comes when that is over, with the time of all of it.
Names and durations are printed, and nothing of what is passed. Without the variable nothing is installed, and costs nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from threading import local
from typing import Any

import pluggy

from flowfactory.control_characters import one_line

VARIABLE = "FLOWFACTORY_TRACE"
_thread = local()


def trace_calls(manager: pluggy.PluginManager, variables: Mapping[str, str] = os.environ) -> None:
    """Have the calls of all hooks of ``manager`` printed, if ``variables`` ask for it."""
    if variables.get(VARIABLE, "") not in ("", "0"):
        manager.add_hookcall_monitoring(_before, _after)


def _before(hook: str, implementations: Sequence[pluggy.HookImpl], given: Mapping[str, Any]) -> None:
    _open_calls().append(time.perf_counter())


def _after(
    outcome: pluggy.Result[Any], hook: str, implementations: Sequence[pluggy.HookImpl], given: Mapping[str, Any]
) -> None:
    seconds = time.perf_counter() - _open_calls().pop()
    if not implementations:  # nobody was called
        return
    told = f"{hook}: {_name_all(implementations)}"
    answer = None if outcome.exception else outcome.get_result()
    if isinstance(answer, Iterator):
        outcome.force_result(_pass_on(answer, told, seconds))
        return
    _tell(seconds, told, outcome.exception)


def _pass_on(answers: Iterator[Any], told: str, seconds: float) -> Iterator[Any]:
    """What a hook yields; how long all of it took, ``seconds`` before the first, is told once nobody asks for more."""
    count, error = 0, None
    try:
        while True:
            calls = _open_calls()
            calls.append(time.perf_counter())
            try:
                answer = next(answers)
            except StopIteration:
                return
            except BaseException as raised:
                error = raised
                raise
            finally:
                seconds += time.perf_counter() - calls.pop()
            count += 1
            yield answer
    finally:
        _tell(seconds, f"{told}, {count} yielded", error)


def _open_calls() -> list[float]:
    """When each call began that this thread is within."""
    if not hasattr(_thread, "calls"):
        _thread.calls = []
    calls: list[float] = _thread.calls
    return calls


def _name_all(implementations: Sequence[pluggy.HookImpl]) -> str:
    """``model within tracker 0``: who answers, in the order of the calls, and the wrappers around them."""
    wrapping = [one.plugin_name for one in reversed(implementations) if one.wrapper or one.hookwrapper]
    answering = [one.plugin_name for one in reversed(implementations) if not (one.wrapper or one.hookwrapper)]
    return " within ".join([", ".join(answering), *reversed(wrapping)] if answering else reversed(wrapping))


def _tell(seconds: float, told: str, error: BaseException | None) -> None:
    raised = f", raised {type(error).__name__}" if error is not None else ""
    rank = os.environ.get("RANK") if os.environ.get("WORLD_SIZE", "1") != "1" else None
    whose = f" rank {rank}" if rank else ""
    line = f"trace{whose}: {1000 * seconds:10.2f} ms  {'  ' * len(_open_calls())}{told}{raised}"
    sys.stderr.write(f"{one_line(line)}\n")  # at once, so that lines of several threads stay lines
    sys.stderr.flush()
