"""How large the velocities are that a policy computes to learn from."""

from __future__ import annotations

from torch import Tensor


class VelocitySizes:
    """The root mean square of each velocity since it was last asked for, where it was computed: no device is waited for."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []

    def add(self, velocity: Tensor) -> None:
        """Note those of ``velocity`` [b, ...]."""
        self._found.append(velocity.detach().flatten(1).float().square().mean(1).sqrt())

    def take(self) -> list[Tensor]:
        """Those [b] of each forward, which are forgotten."""
        found, self._found = self._found, []
        return found
