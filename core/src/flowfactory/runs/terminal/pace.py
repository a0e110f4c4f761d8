"""How long iterations take, by the phases of those that were seen, and what is left of a run by that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

RECURRING = ("evaluating", "saving")
"""Phases that do not come in every iteration: they are counted apart, by how often they are still to come."""
ONCE = ("loading", "encoding", "checking")
"""Phases that do not come again, or seldom: how long they take tells nothing of an iteration."""
LAST = 10
"""Iterations that the pace is the mean of: more of them would tell less of how it is now."""


@dataclass(frozen=True)
class Pace:
    """Seconds, all of them by a clock of whoever calls.

    ``spent``: in the iteration under way, by phase, up to ``since``, when ``phase`` was begun; "" is between phases.
    ``work``: of each of the last iterations, without what is RECURRING or comes ONCE. ``recurring``: how often a phase of
    those came, and how many seconds all of it took.
    """

    since: float
    phase: str = ""
    spent: Mapping[str, float] = field(default_factory=dict)
    work: tuple[float, ...] = ()
    recurring: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def enter(self, phase: str, now: float) -> Pace:
        """The pace when ``phase`` is at hand."""
        if phase == self.phase:
            return self
        return replace(self, phase=phase, since=now, spent=self._spent_by(now))

    def finish(self, now: float, whole: bool) -> Pace:
        """The pace when an iteration is done, or not the ``whole`` of it but the evaluation before training."""
        spent = dict(self._spent_by(now))
        recurring = dict(self.recurring)
        for phase in RECURRING:
            if phase in spent:
                count, seconds = recurring.get(phase, (0, 0.0))
                recurring[phase] = (count + 1, seconds + spent.pop(phase))
        if not whole:
            return replace(self, since=now, phase="", spent=spent, recurring=recurring)
        work = (*self.work, _work(spent))[-LAST:]
        return replace(self, since=now, phase="", spent={}, work=work, recurring=recurring)

    def seconds_left(self, now: float, iterations: int, coming: Mapping[str, int]) -> float | None:
        """Until ``iterations`` more are done, the one under way among them; None before one is, or where none is left.

        ``coming``: how often the RECURRING phases come in them.
        """
        if not self.work or iterations <= 0:
            return None
        spent, mean = self._spent_by(now), sum(self.work) / len(self.work)
        left = mean * (iterations - 1) + max(0.0, mean - _work(spent))
        for phase, (count, seconds) in self.recurring.items():
            left += max(0.0, coming.get(phase, 0) * seconds / count - spent.get(phase, 0.0))
        return left

    def _spent_by(self, now: float) -> Mapping[str, float]:
        return {**self.spent, self.phase: self.spent.get(self.phase, 0.0) + now - self.since}


def _work(spent: Mapping[str, float]) -> float:
    return sum(seconds for phase, seconds in spent.items() if phase not in (*RECURRING, *ONCE))
