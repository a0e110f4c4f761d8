"""Progress in the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flowfactory.control_characters import escape_controls, one_line
from flowfactory.discovery.specs import hookimpl
from flowfactory.runs.score_format import format_score
from flowfactory.types import RunInfo

STEADY = 3600.0
"""Seconds that the pace is taken from: an iteration, or what it takes to read encoders, may be minutes."""


class Terminal:
    """Progress with pictures a second and time left on a terminal; a plain line an iteration elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._run: RunInfo | None = None
        self._pictures, self._kind = 0, "images"
        self._bar: Progress | None = None

    def say(self, sentence: str) -> None:
        """Print one line, above the bar where there is one."""
        self._console.print(one_line(sentence), markup=False, emoji=False, highlight=False, soft_wrap=True)

    @hookimpl
    def prompts_encoded(self, done: int, total: int) -> None:
        """Move the bar of what is encoded before training; it goes at the end."""
        if not self._console.is_terminal:
            return
        if self._bar is None:
            self._begin("encoding", total, 0, TextColumn("prompts"))
        assert self._bar is not None
        self._bar.update(self._bar.task_ids[0], completed=done)
        if done >= total:
            self.close()

    @hookimpl
    def run_started(self, run: RunInfo) -> None:
        """Remember what is to come."""
        self._run = run
        self._pictures = run.config.sampling.groups * run.config.sampling.group_size
        self._kind = "videos" if run.config.sampling.frames else "images"

    @hookimpl
    def iteration_finished(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Move the bar, or print the line."""
        if self._run is None or iteration == 0:
            return
        rewards = "  ".join(
            f"{escape_controls(name.split('/')[1])} {format_score(value)}"
            for name, value in metrics.items()
            if name.startswith("reward/") and name.endswith("/mean")
        )
        seconds = sum(value for name, value in metrics.items() if name.startswith("seconds/"))
        rate = f"{self._pictures / seconds:.1f} {self._kind}/s" if seconds else ""
        if self._console.is_terminal:
            if self._bar is None:
                # a resumed run's bar starts where it left off, and its pace at the first iteration it makes
                told = TextColumn("{task.fields[rewards]}  {task.fields[rate]}", markup=False)
                self._begin("training", self._run.iterations, iteration - 1, told, rewards="", rate="")
            assert self._bar is not None
            self._bar.update(self._bar.task_ids[0], completed=iteration, rewards=rewards, rate=rate)
        else:
            ratio = f"  ratio {metrics['ratio/mean']:.6f}" if "ratio/mean" in metrics else ""
            self.say(f"iteration {iteration}/{self._run.iterations}  {rewards}  loss {metrics['loss']:.3e}{ratio}  {rate}")

    @hookimpl
    def run_finished(self) -> None:
        """Take the bar away."""
        self.close()

    @hookimpl
    def run_failed(self) -> None:
        """Take the bar away."""
        self.close()

    def _begin(self, what: str, total: int, completed: int, told: ProgressColumn, **fields: str) -> None:
        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            told,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=STEADY,
        )
        self._bar.add_task("", total=total, completed=completed, **fields)  # type: ignore[arg-type]
        self._bar.start()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
