"""The lines of a run where there is no terminal to draw on."""

from __future__ import annotations

from flowfactory.reward_trends import direction
from flowfactory.runs.score_format import format_score
from flowfactory.runs.terminal.state import RunState
from flowfactory.runs.terminal.words import tell_duration

SILENCE = 60.0
"""Seconds without a line after which one tells of the phase at hand: a log of short iterations has none of them."""
AGAIN = 600.0
"""Seconds after which one more does, within the same phase of the same iteration."""
TRENDS = {1: " rising", 0: "", -1: " falling"}


def iteration_line(state: RunState, now: float) -> str:
    """``iteration 3/10  ocr 0.4100 rising  loss 1.200e-03  ratio 1.000000  4.0 images/s  12 min left``."""
    figures, left, rate = state.figures, state.seconds_left(now), state.pictures_a_second
    parts = (
        f"iteration {state.iteration}/{state.iterations}",
        *(f"{label} {format_score(means[-1])}{TRENDS[direction(means)]}" for label, means in state.rewards.items()),
        f"loss {figures['loss']:.3e}" if "loss" in figures else "",
        f"ratio {figures['ratio/mean']:.6f}" if "ratio/mean" in figures else "",
        f"{rate:.1f} {state.kind}/s" if rate else "",
        f"{figures['peak_memory_mb'] / 2**10:.1f} GiB" if "peak_memory_mb" in figures else "",
        f"{tell_duration(left)} left" if left is not None else "",
    )
    return "  ".join(part for part in parts if part)


def phase_line(state: RunState, now: float) -> str:
    """``iteration 3/10: drawing 12/64  2 h 10 min left``."""
    where = f"iteration {state.under_way}/{state.iterations}: " if state.iterations else ""
    count = f" {state.done}/{state.total}" if state.total else ""
    left = state.seconds_left(now)
    return f"{where}{state.phase}{count}" + (f"  {tell_duration(left)} left" if left is not None else "")
