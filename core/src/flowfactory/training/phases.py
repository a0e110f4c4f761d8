"""How far a phase of an iteration is, told to the observers as it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowfactory.distributed.ranks import Ranks
    from flowfactory.hooks.calls import Hooks

TellPhase = Callable[[str, int, int], None]
"""``tell(phase, done, total)``, as RunSpecs.phase_progressed."""


class Phase:
    """Counts the samples of a phase on all ranks, of which this one counts its own, and tells of each piece that is done."""

    def __init__(self, tell: TellPhase, name: str, total: int, ranks: int = 1) -> None:
        self._tell, self._name, self._total, self._ranks = tell, name, total, ranks
        self._done = 0

    def show(self) -> None:
        """Tell that this phase is the one at hand."""
        self._tell(self._name, self._done, self._total)

    def reach(self, done: int) -> None:
        """Tell that ``done`` samples of all ranks are done; fewer than before are as many as before."""
        self._done = max(self._done, min(self._total, done))
        self.show()

    def add(self, count: int) -> None:
        """Tell that this rank has done ``count`` samples more, and each of the others as many; fillers count for nothing."""
        self.reach(self._done + count * self._ranks)


def phase_teller(hooks: Hooks, ranks: Ranks) -> TellPhase:
    """What tells the observers, on the leading rank; nobody on the others."""
    return hooks.phase_progressed if ranks.leads else _tell_nobody


def begin_phase(hooks: Hooks, ranks: Ranks, name: str, total: int) -> Phase:
    """A phase of ``total`` samples of all ranks, told of as begun."""
    phase = Phase(phase_teller(hooks, ranks), name, total, ranks.workers.count)
    phase.show()
    return phase


def _tell_nobody(phase: str, done: int, total: int) -> None:
    """What ranks other than the leading one tell."""
