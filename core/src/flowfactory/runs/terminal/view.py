"""The live view of a run: what rich shows of its state, for any width."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flowfactory.reward_trends import TELLING, direction
from flowfactory.runs.score_format import format_score
from flowfactory.runs.terminal.memory import Memory
from flowfactory.runs.terminal.state import RunState
from flowfactory.runs.terminal.words import sparkline, tell_duration, tell_gibibytes

REWARDS = 8
"""Rewards that are shown: the view must fit a small terminal, or nothing of it moves."""
ARROWS = {1: ("↗", "green"), 0: ("→", "dim"), -1: ("↘", "red")}
PLAIN_ARROWS = {1: ("up", "green"), 0: ("", ""), -1: ("down", "red")}
"""Where the encoding has no arrows."""
NARROW = 70
"""Columns below which what one can do without is left out."""
WIDE = 100
"""Columns beyond which bars are no longer."""


def render(state: RunState, now: float, width: int, memory: Memory | None, unicode: bool = True) -> RenderableType:
    """The whole view, at most ``width`` columns wide."""
    parts: list[RenderableType] = [_bars(state, now, width)]
    if state.rewards or state.held_out:
        parts.append(_rewards(state, width, unicode))
    if state.iterations and memory:
        parts.append(_line(_memory(state, memory), unicode))
    parts += [_line(Text(sentence, "yellow"), unicode) for sentence in state.warnings]
    if state.warned > len(state.warnings):
        parts.append(_line(Text(f"{state.warned - len(state.warnings)} earlier warnings are above", "yellow"), unicode))
    return Group(*parts)


def _bars(state: RunState, now: float, width: int) -> Table:
    """The run, and the phase at hand, each with its bar."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.width = min(width, WIDE)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column(no_wrap=True)
    if state.iterations:
        count = f"{state.iteration}/{state.iterations}"
        grid.add_row("training", _bar(state.iteration, state.iterations, now), count, _times(state, now, width))
    if state.phase:
        count = f"{state.done}/{state.total}" if state.total else ""
        told = tell_duration(now - state.phase_began)
        rate = state.pictures_a_second
        if rate and width >= NARROW:
            told += f", {rate:.1f} {state.kind}/s"
        grid.add_row(state.phase, _bar(state.done, state.total, now), count, told)
    return grid


def _bar(done: int, total: int, now: float) -> ProgressBar:
    """A bar that runs to and fro where no total is known."""
    return ProgressBar(total or None, done, pulse=not total, animation_time=now)


def _times(state: RunState, now: float, width: int) -> str:
    left = state.seconds_left(now)
    told = "time left after iteration 1" if left is None else f"{tell_duration(left)} left"
    if state.iteration >= state.iterations:
        told = "done"
    return told if width < NARROW else f"{told}, {tell_duration(now - state.began)} so far"


def _rewards(state: RunState, width: int, unicode: bool) -> Table:
    """A row a reward: its mean, where it goes, how it went, and the first and last score of what is held out."""
    grid = Table.grid(padding=(0, 1))
    overflow = "ellipsis" if unicode else "crop"
    grid.add_column(no_wrap=True, overflow=overflow, max_width=max(8, width // 4))  # type: ignore[arg-type]
    for _ in range(3):
        grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, overflow=overflow)  # type: ignore[arg-type]
    labels = list(dict.fromkeys([*state.rewards, *state.held_out]))
    length = max(0, min(40, width - 50)) if state.held_out else max(0, min(60, width - 30))
    for label in labels[:REWARDS]:
        means = state.rewards.get(label, ())
        arrow, style = (ARROWS if unicode else PLAIN_ARROWS)[direction(means)] if len(means) >= TELLING else ("", "")
        first_last = state.held_out.get(label)
        grid.add_row(
            Text(label),
            format_score(means[-1]) if means else "",
            Text(arrow, style),
            Text(sparkline(means, length) if unicode else "", "cyan"),
            _held_out(*first_last, unicode) if first_last else "",
        )
    if len(labels) > REWARDS:
        grid.add_row(f"and {len(labels) - REWARDS} more")
    return grid


def _held_out(first: float, last: float, unicode: bool) -> str:
    if first == last:
        return f"held out {format_score(last)}"
    return f"held out {format_score(first)} {'→' if unicode else 'to'} {format_score(last)}"


def _memory(state: RunState, memory: Memory) -> Text:
    total = f" of {tell_gibibytes(memory.total)}" if memory.total else ""
    peak = state.figures.get("peak_memory_mb")
    most = f", at most {tell_gibibytes(peak * 2**20)}" if peak else ""
    return Text(f"memory {tell_gibibytes(memory.used)}{total}{most}", "dim")


def _line(text: Text, unicode: bool) -> Text:
    """One line, cut off where the terminal ends."""
    text.no_wrap, text.overflow = True, "ellipsis" if unicode else "crop"
    return text
