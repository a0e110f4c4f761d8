"""The observer that shows a run: rich's live view on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live

from flowfactory.control_characters import one_line
from flowfactory.discovery.specs import hookimpl
from flowfactory.runs.terminal.lines import AGAIN, SILENCE, iteration_line, phase_line
from flowfactory.runs.terminal.memory import memory_in_use
from flowfactory.runs.terminal.pace import Pace
from flowfactory.runs.terminal.state import RunState
from flowfactory.runs.terminal.view import render
from flowfactory.types import RunInfo

if TYPE_CHECKING:
    import torch

    from flowfactory.policy.policy import Policy

WARNING = "warning: "
A_SECOND = 4.0
"""How often the view is drawn anew."""


class Terminal:
    """A view that moves within iterations on a terminal, and a line an iteration elsewhere; ``quiet``: warnings alone.

    Its hooks only note what they are told; the view is drawn in a thread of its own, so often and no more.
    """

    def __init__(self, console: Console, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._quiet, self._clock = console, quiet, clock
        self._state = RunState(clock(), Pace(clock()))
        self._device: torch.device | None = None
        self._live: Live | None = None
        self._said = clock()  # when there was a line last
        self._told: dict[tuple[int, str], float] = {}  # when there was one last of a phase of the iteration under way

    def say(self, sentence: str) -> None:
        """Print one line, above the view where there is one; when quiet, warnings, and the answer to who stops the run."""
        warns = WARNING in sentence[: len("preflight: ") + len(WARNING)]
        if warns:
            self._state = self._state.warn(one_line(sentence))
        if not self._quiet or warns or sentence.startswith("stopping after this iteration"):
            self.show(sentence)

    def show(self, sentence: str) -> None:
        """Print one line, quiet or not."""
        self._said = self._clock()
        self._console.print(one_line(sentence), markup=False, emoji=False, highlight=False, soft_wrap=True)

    @hookimpl
    def phase_progressed(self, phase: str, done: int, total: int) -> None:
        """Note how far the phase is."""
        now = self._clock()
        self._state = self._state.enter(phase, done, total, now)
        if self._quiet:
            return
        if self._console.is_terminal:
            self._draw()
        else:
            self._tell_phase(now)

    def _tell_phase(self, now: float) -> None:
        """Print a line of the phase at hand where there was none for long, of this phase for longer."""
        place = (self._state.iteration, self._state.phase)
        wait = AGAIN if place in self._told else SILENCE
        if now - self._said >= wait:
            self._told = {place: now}
            self.show(phase_line(self._state, now))

    @hookimpl
    def run_started(self, run: RunInfo, policy: Policy) -> None:
        """Note what is to come."""
        self._device = policy.device
        self._state = self._state.start(run)

    @hookimpl
    def iteration_finished(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Note the figures, and print their line where there is no terminal."""
        now = self._clock()
        self._state = self._state.finish(iteration, metrics, now)
        if iteration and not self._quiet and not self._console.is_terminal:
            self.show(iteration_line(self._state, now))

    @hookimpl
    def run_finished(self) -> None:
        """Take the view away."""
        self._end()

    @hookimpl
    def run_failed(self) -> None:
        """Take the view away."""
        self._end()

    def _end(self) -> None:
        """Leave a line of the last iteration in the place of the view."""
        shown = self._live is not None
        self.close()
        if shown and self._state.figures:
            self.show(iteration_line(self._state, self._clock()))

    def _draw(self) -> None:
        if self._live is None:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=A_SECOND, transient=True)
            self._live.start()

    def _render(self) -> RenderableType:
        unicode = self._console.encoding.startswith("utf")
        return render(self._state, self._clock(), self._console.width, memory_in_use(self._device), unicode)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None
