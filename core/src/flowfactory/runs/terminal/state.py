"""What is known of a run while it goes on. Nothing here prints, or looks at a clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flowfactory.control_characters import escape_controls
from flowfactory.runs.terminal.pace import Pace

if TYPE_CHECKING:
    from flowfactory.types import RunInfo

KEPT = 200
"""Iterations whose rewards are remembered: a terminal is hardly wider."""
WARNINGS = 3
"""Warnings that stay in view; all of them are printed as they come."""


@dataclass(frozen=True)
class RunState:
    """A run as far as it is.

    ``iteration``: the last one that is done, of ``iterations``, which is 0 before the run has started. ``phase``: the one at
    hand, with ``done`` of ``total`` since ``phase_began``. ``rewards``: the means by label, the latest last. ``held_out``: the
    first and the last mean by label. ``figures``: the metrics of the last iteration. ``warnings``: the last of ``warned``.
    """

    began: float
    pace: Pace
    iterations: int = 0
    iteration: int = 0
    pictures: int = 0
    kind: str = "images"
    evaluate_every: int = 0
    save_every: int = 0
    phase: str = ""
    done: int = 0
    total: int = 0
    phase_began: float = 0.0
    rewards: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    held_out: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    warned: int = 0

    def start(self, run: RunInfo) -> RunState:
        """The state when training begins."""
        sampling = run.config.sampling
        return replace(
            self,
            iterations=run.iterations,
            pictures=sampling.groups * run.config.group_members,
            kind="records" if run.config.algorithm.learns_from != "samples" else "videos" if sampling.frames else "images",
            evaluate_every=run.config.evaluation.every,
            save_every=run.config.output.checkpoint_every,
        )

    def enter(self, phase: str, done: int, total: int, now: float) -> RunState:
        """The state when ``done`` of ``total`` of ``phase`` are done."""
        began = self.phase_began if phase == self.phase else now
        return replace(self, phase=phase, done=done, total=total, phase_began=began, pace=self.pace.enter(phase, now))

    def finish(self, iteration: int, metrics: Mapping[str, float], now: float) -> RunState:
        """The state when ``iteration`` is done; 0 is the evaluation before training."""
        held_out = dict(self.held_out)
        for label, mean in _means("eval", metrics).items():
            held_out[label] = (held_out.get(label, (mean, mean))[0], mean)
        pace = self.pace.finish(now, whole=iteration > 0)
        if iteration == 0:
            return replace(self, held_out=held_out, pace=pace)
        rewards = {**self.rewards}
        for label, mean in _means("reward", metrics).items():
            rewards[label] = (*rewards.get(label, ()), mean)[-KEPT:]
        return replace(self, iteration=iteration, rewards=rewards, held_out=held_out, figures=metrics, pace=pace)

    def warn(self, sentence: str) -> RunState:
        """The state when ``sentence`` was warned of; one that is in view already is not there twice."""
        kept = tuple(one for one in self.warnings if one != sentence)
        return replace(self, warnings=(*kept, sentence)[-WARNINGS:], warned=self.warned + (sentence not in self.warnings))

    @property
    def under_way(self) -> int:
        """The iteration that is being made, or the last one."""
        return min(self.iteration + 1, self.iterations)

    @property
    def pictures_a_second(self) -> float | None:
        """As the last iteration drew, judged and learned them, without evaluations."""
        seconds = sum(value for name, value in self.figures.items() if name.startswith("seconds/"))
        return self.pictures / seconds if seconds else None

    def seconds_left(self, now: float) -> float | None:
        """Until the run is done; None before an iteration is, which tells how long one takes."""
        return self.pace.seconds_left(
            now,
            self.iterations - self.iteration,
            {"evaluating": self._coming(self.evaluate_every), "saving": self._coming(self.save_every)},
        )

    def _coming(self, every: int) -> int:
        """How many of the iterations that are left are multiples of ``every``, or the last one."""
        if self.iteration >= self.iterations:
            return 0
        regular = self.iterations // every - self.iteration // every if every else 0
        return regular + (not every or self.iterations % every != 0)


def _means(kind: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """{label: mean} of the metrics ``kind/<label>/mean``; labels as a terminal may be given them."""
    named = ((name.split("/"), value) for name, value in metrics.items())
    return {escape_controls(parts[1]): value for parts, value in named if len(parts) == 3 and parts[::2] == [kind, "mean"]}
