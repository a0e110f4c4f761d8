"""How large the velocities are that a policy computes to learn from, and whether others are computed to be measured alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from flowfactory.rl.norm_guard import root_mean_square


class VelocitySizes:
    """The root mean square of each velocity since it was last asked for, where it was computed: no device is waited for.

    ``measuring``: forwards are made at present that nothing is learned from, see :meth:`measured`.
    """

    def __init__(self) -> None:
        self._found: list[Tensor] = []
        self.measuring = False

    def add(self, velocity: Tensor) -> None:
        """Note those of ``velocity`` [b, ...]."""
        self._found.append(root_mean_square(velocity.detach()))

    def take(self) -> list[Tensor]:
        """Those [b] of each forward, which are forgotten."""
        found, self._found = self._found, []
        return found

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Within it forwards are made to be measured alone, and whoever counts those of an algorithm can tell."""
        self.measuring = True
        try:
            yield
        finally:
            self.measuring = False
